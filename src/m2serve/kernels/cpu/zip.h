// Numbers that lie side by side, apart into vectors of every parts-th, and together again.
#pragma once

namespace m2::M2_ISA {
namespace {

// Of parts * kLanes numbers vector j gets those at j, j + parts, j + 2 * parts, ...
template <int parts>
inline void unzip_all(F* v) {
    if constexpr (parts > 1) {
        F odd[parts / 2];
        for (int i = 0; i < parts / 2; ++i) {
            F first = v[2 * i], second = v[2 * i + 1];
            unzip(first, second);
            v[i] = first;
            odd[i] = second;
        }
        unzip_all<parts / 2>(v);
        unzip_all<parts / 2>(odd);
        for (int i = parts / 2; i-- > 0;) {
            v[2 * i] = v[i];
            v[2 * i + 1] = odd[i];
        }
    }
}

// The other way round.
template <int parts>
inline void zip_all(F* v) {
    if constexpr (parts > 1) {
        F odd[parts / 2];
        for (int i = 0; i < parts / 2; ++i) {
            odd[i] = v[2 * i + 1];
            v[i] = v[2 * i];
        }
        zip_all<parts / 2>(v);
        zip_all<parts / 2>(odd);
        for (int i = parts / 2; i-- > 0;) {
            F first = v[i], second = odd[i];
            zip(first, second);
            v[2 * i] = first;
            v[2 * i + 1] = second;
        }
    }
}

}  // namespace
}  // namespace m2::M2_ISA
