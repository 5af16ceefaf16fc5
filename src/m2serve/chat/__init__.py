"""From messages to token ids and from token ids back to reasoning, content and tool calls.

Text that did not come from us never turns into a control token, and what a stream delivers is, put
together, what the whole answer would have been. No torch.
"""
