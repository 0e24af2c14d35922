"""Options that a hook cannot be built without, for tests that build every hook."""

REQUIRED = {
    "teacher_velocity": {"teachers": {"ink": "runs/ink"}},
    "flow_grpo": {"rewards": [{"type": "flowhooks.embedded.rewards:Ink"}]},
}
