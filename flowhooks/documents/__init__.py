"""Reads JSON documents, takes secrets out of them, checks them against their schemas, fills in defaults, and says in
words what is wrong.

This room knows no run, no hook and no model. Free of torch.
"""
