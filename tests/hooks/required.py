"""Options that a hook cannot be built without, for tests that build every hook."""

REQUIRED = {
    "teacher_velocity": {"teachers": {"ink": "runs/ink"}},
    "adjoint_target": {"rewards": [{"type": "flowhooks.embedded.rewards:Ink"}]},
    "flow_grpo": {"rewards": [{"type": "flowhooks.embedded.rewards:Ink"}]},
}
