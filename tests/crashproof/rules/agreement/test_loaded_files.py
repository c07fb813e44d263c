from __future__ import annotations

import pytest

from crashproof.rules.agreement.loaded_files import can_decide


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("pytorch_model.bin", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"),
        *("additional_chat_templates/tools.jinja", "generation_config.json", "modeling.py", "weights"),
    ],
)
def test_what_a_loader_may_read_counts(name):
    assert can_decide(name)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "images/loss.PNG", ".gitattributes"),
        *(".cache/huggingface/download/config.json.metadata", "original/consolidated.00.pth", "model.gguf"),
        *("onnx/model.onnx", "tf_model.h5", "flax_model.msgpack"),
    ],
)
def test_what_no_loader_reads_may_differ(name):
    assert not can_decide(name)
