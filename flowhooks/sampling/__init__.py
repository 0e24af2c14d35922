"""Run a stock pipeline, to sample images or to roll out states that a hook trains on.

Switches that act from step to step while a pipeline samples (an adapter's gate, the second time of a flow map) are
here; prompts are read here too. This room imports no hook.
"""
