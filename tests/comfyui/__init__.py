"""Runs exported files and the node under ComfyUI's own code, from a checkout that whoever runs it has.

No part of the suite, and none of ComfyUI's code (GPL-3.0) is here: `python -m tests.comfyui.files --comfyui DIR` and
`python -m tests.comfyui.flow_maps --comfyui DIR` import it from there, on the CPU.
"""
