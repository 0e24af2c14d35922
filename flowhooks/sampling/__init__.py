"""Runs a stock pipeline, to sample images or to roll out states that a hook trains on.

What is switched from step to step while a pipeline samples (an adapter's gate, the second time of a flow map) is here;
prompts are read here too. This room knows no hook.
"""
