"""Runs with references, images that the pipeline is given beside the prompt, that are refused before weights load."""

from __future__ import annotations

from tests.acceptance.refusal_makers import PROMPTED, Refusal, prompt_file, referring, rewarded, twice_referring

REFERENCES: dict[str, Refusal] = {
    "references for a pipeline that takes no image": Refusal(
        make=referring(), words=("data.json: $: ", "holds references, and the pipeline takes no image")
    ),
    "references for an argument that there is not": Refusal(
        make=referring(reference_argument="last_image"),
        words=("data.json: $: ", "holds references for 'last_image'; the pipeline takes no image"),
    ),
    "two references of a sample for an argument that takes one": Refusal(
        make=twice_referring,
        words=("data.json: $: ", "6 of 6 samples have up to 2 references for 'image', which takes one image: "),
    ),
    "references of prompts for a pipeline that takes no image": Refusal(
        make=prompt_file("p.jsonl", b'{"prompt": "a", "images": {"image": "absent.png"}}'),
        words=("$.hooks[1].prompts: ", "the prompt 'a' names references for 'image'; the pipeline takes images in no"),
    ),
    "references of prompts that cannot be read": Refusal(
        make=prompt_file("p.jsonl", b'{"prompt": "a", "images": ["absent.png"]}'),
        words=("$.hooks[1].prompts: ", "absent.png cannot be read: there is no such file"),
    ),
    "many references of prompts that cannot be read": Refusal(
        make=prompt_file("p.jsonl", b"\n".join(b'{"prompt": "a", "images": "%d.png"}' % number for number in range(7))),
        words=("$.hooks[1].prompts: ", "2 more images of prompts cannot be read"),
    ),
    "a reward that compares prompts without references": Refusal(
        make=rewarded({}, {**PROMPTED, "prompts": ["a", "b"]}),
        words=(
            "$.hooks[0].rewards[0]: ",
            "compares each image with its reference, which 2 of 2 prompts lack: a, b; name them under `images`",
        ),
    ),
    "a reward that compares prompts outside masks of the data": Refusal(
        make=rewarded({"outside_mask": True}, {**PROMPTED, "prompts": ["a", "b"]}),
        words=("$.hooks[0].rewards[0]: ", "`outside_mask` reads the masks of the data, and this run draws `prompts`"),
    ),
    "a reward that compares samples of the data without references": Refusal(
        make=rewarded({"reference": 1}, {"type": "on_policy_rollout", "group_size": 2}),
        words=(
            "$.hooks[0].rewards[0]: ",
            "compares each image with its reference number 2, which 6 of 6 samples of the data lack: ",
            "no `reference_dropout`",
        ),
    ),
}
