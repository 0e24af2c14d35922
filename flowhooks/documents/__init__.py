"""JSON documents: read, checked against their schemas, completed with defaults, and what is wrong said in words.

It knows no run, no hook and no model. Free of torch.
"""
