"""Model folders as people have them: whatever `AutoModelForCausalLM` loads is trained, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from crashproof.distillation.models.causal_lm import load_model
from crashproof.distillation.models.making import DeferredModels
from crashproof.distillation.models.model_folder import ModelFolder
from crashproof.distillation.models.split_model import SplitModel
from crashproof.errors import ConfigError
from tests.model_folders import SIZES, VOCAB_SIZE, WITHOUT_A_TEACHER, dtypes, edit_json, save, tiny_tokenizer
from tests.tool_lines import WEATHER
from training.distill_kd import main
from training.distill_process import main as train_process


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path_factory.mktemp("folders") / "tokenizer")


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(LlamaForCausalLM(LlamaConfig(**SIZES)), tokenizer, tmp_path / "llama")


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., int]:
    """Two steps without a teacher, on two short lines."""

    def start(student: Path, *overrides: object) -> int:
        data = tmp_path / "data.jsonl"
        data.write_text('{"prompt": "What is two and two?", "teacher_text": " four"}\n' * 2)
        words = [f"data.path={data}", f"student.path={student}", "train.steps=2", "train.batch_size=2"]
        words += [*WITHOUT_A_TEACHER, "train.device=cpu", *map(str, overrides)]
        return main("kd", [*words, "--output-dir", str(tmp_path / "out")])

    return start


def nested_gemma(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A model of images and text, whose text model has a config of its own."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=SIZES | {"head_dim": 8, "sliding_window": 16},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return save(Gemma3ForConditionalGeneration(config), tokenizer, folder)


def test_a_nested_text_model_is_student_and_teacher(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, train: Callable[..., int]
) -> None:
    folder = nested_gemma(tokenizer, tmp_path / "gemma3")
    teacher = ("teacher.kind=local", f"teacher.path={folder}")
    evaluated = ("data.held_out=0.5", "progress.eval_every=2")

    assert 0 == train(folder, *teacher, *evaluated, "loss.kd=1", "loss.intermediate=0.1")

    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "out" / "student_2"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert not any("vision" in name or "projector" in name for name in changed)
    assert isinstance(load_model(tmp_path / "out" / "student_2"), Gemma3ForConditionalGeneration)


def test_adapters_of_a_nested_text_model_are_trained(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, train: Callable[..., int]
) -> None:
    assert 0 == train(nested_gemma(tokenizer, tmp_path / "gemma3"), "student.lora={rank: 2}")


@pytest.mark.parametrize(
    "config, is_split",
    [
        (Gemma2Config(**SIZES, head_dim=8), False),
        (Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=None), True),
        (GraniteConfig(**SIZES, logits_scaling=8.0), False),
        (CohereConfig(**SIZES), False),
        (LlamaConfig(**SIZES, tie_word_embeddings=True), True),
        (GPTNeoXConfig(**SIZES), True),
        (GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2), True),
        (MixtralConfig(**SIZES, num_local_experts=2, output_router_logits=True), True),
    ],
    ids=["soft cap", "no soft cap", "scaled", "logit scale", "tied", "untied", "learned positions", "experts"],
)
def test_what_a_model_does_to_its_logits_is_found_for_fresh_weights(config: Any, is_split: bool) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)

    assert is_split is SplitModel(model).is_split


def test_a_soft_cap_is_part_of_the_cross_entropy() -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, head_dim=8))
    with torch.no_grad():
        model.model.norm.weight.fill_(200)
    ids = torch.tensor([[1, 2, 3, 4]])
    rows = torch.arange(3)

    own = SplitModel(model).cross_entropies(ids, ids.roll(-1), rows, chunk_tokens=2)

    logits = model(input_ids=ids).logits[0, :3]
    assert logits.abs().max() > 20
    assert torch.allclose(own, torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_student_is_saved_in_the_type_of_its_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, train: Callable[..., int], dtype: torch.dtype
) -> None:
    folder = save(LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype), tokenizer, tmp_path / "model")

    assert 0 == train(folder)

    student = tmp_path / "out" / "student_2"
    assert {dtype} == dtypes(load_file(student / "model.safetensors"))
    assert dtype == ModelFolder.read(student).dtype
    checkpoint = torch.load(tmp_path / "out" / "checkpoint_2.pt", weights_only=True)
    trained = [each for each in _tensors(checkpoint) if each.is_floating_point() and each.dim() == 2]
    # Updates that are smaller than a step of the type of the folder are not lost.
    assert {torch.float32} == {each.dtype for each in trained}


def test_the_type_of_the_saved_student_can_be_set(llama: Path, tmp_path: Path, train: Callable[..., int]) -> None:
    assert 0 == train(llama, "student.save_dtype=bfloat16")

    assert {torch.bfloat16} == dtypes(load_file(tmp_path / "out" / "student_2" / "model.safetensors"))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None], ids=["dtype", "torch_dtype", "neither"])
def test_the_type_is_read_however_it_is_spelled(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, key: Any) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)  # type: ignore[arg-type]
    folder = save(model, tokenizer, tmp_path / "model")
    edit_json(folder / "config.json", dtype=None)
    if key is not None:
        edit_json(folder / "config.json", **{key: "bfloat16"})

    assert torch.bfloat16 == ModelFolder.read(folder).dtype


def test_weights_in_shards_are_read_and_a_missing_one_is_named(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, train: Callable[..., int]
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    folder = save(model, tokenizer, tmp_path / "model", max_shard_size="20kB")
    shards = sorted(folder.glob("model-*.safetensors"))

    assert len(shards) > 1
    assert 0 == train(folder)
    shards[-1].unlink()
    with pytest.raises(ConfigError, match=rf"1 of {len(shards)} files of its weights are missing"):
        load_model(folder)


def test_pickled_weights_are_read(llama: Path, train: Callable[..., int]) -> None:
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()

    assert 0 == train(llama)


def test_padding_of_the_vocabulary_and_a_bias_of_the_head_are_kept(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, train: Callable[..., int]
) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    model = PhiForCausalLM(PhiConfig(**(SIZES | {"vocab_size": 320})))
    folder = save(model, tokenizer, tmp_path / "phi")

    assert 0 == train(folder)

    assert (320,) == load_file(tmp_path / "out" / "student_2" / "model.safetensors")["lm_head.bias"].shape


def make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/model"}')


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def need_own_code(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        model_type="strange",
        auto_map={"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.Strange"},
    )
    (folder / "strange.py").write_text("raise SystemExit('it was run')")


def pickle_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter": (make_adapter, "it is an adapter of PEFT, which needs its base model"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "a cut config": (
        lambda folder: (folder / "config.json").write_text('{"model_type"'),
        "config.json cannot be read",
    ),
    "a list as config": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not an object"),
    "no type": (lambda folder: edit_json(folder / "config.json", model_type=None), "cannot read its config"),
    "a wrong value": (lambda folder: edit_json(folder / "config.json", hidden_size="16"), "holds no causal"),
    "other sizes": (
        lambda folder: edit_json(folder / "config.json", intermediate_size=48),
        "has the shape",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights"),
    "cut weights": (cut_weights, "model.safetensors is damaged"),
    "a broken pickle": (pickle_nothing, "holds no causal language model"),
    "quantized": (
        lambda folder: edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"its weights are quantized \(gptq\)",
    ),
    "own code": (need_own_code, "it needs the code in its folder .* which is never run"),
    "another vocabulary": (lambda folder: edit_json(folder / "config.json", vocab_size=300), "has the shape"),
    "no package": (
        lambda folder: edit_json(folder / "config.json", attn_implementation="flash_attention_2"),
        "the package for FlashAttention2 doesn't seem to be installed",
    ),
    "more layers": (lambda folder: edit_json(folder / "config.json", num_hidden_layers=3), "lack 9 of the model's"),
    "an index without a map": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder / "model-1.safetensors")
            and (folder / "model.safetensors.index.json").write_text("{}")
        ),
        "model.safetensors.index.json cannot be read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_trained_is_refused_in_one_line(
    name: str, llama: Path, train: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    break_it, words = BROKEN[name]
    break_it(llama)

    assert 2 == train(llama)

    lines = capfd.readouterr().err.splitlines()
    assert 1 == sum(line.startswith("kd: ") for line in lines)
    assert not any("REPORT" in line or "Traceback" in line for line in lines)
    for read in (load_model, DeferredModels().read):
        with pytest.raises(ConfigError, match=words):
            read(llama)


def encoder(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    return save(BertForMaskedLM(BertConfig(**SIZES)), tokenizer, folder)


def renamed_encoder(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    save(BertForMaskedLM(BertConfig(**SIZES)), tokenizer, folder)
    edit_json(folder / "config.json", architectures=None)
    return folder


def t5(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    config = T5Config(vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return save(T5ForConditionalGeneration(config), tokenizer, folder)


def bart(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return save(BartForConditionalGeneration(BartConfig(vocab_size=VOCAB_SIZE, **sizes, **heads)), tokenizer, folder)


def headless(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    return save(LlamaModel(LlamaConfig(**SIZES)), tokenizer, folder)


@pytest.mark.parametrize(
    "make, words",
    [
        (encoder, r"it is an encoder \(BertForMaskedLM\), whose positions see what follows them"),
        (renamed_encoder, r"holds an encoder \(BertLMHeadModel\): its positions see the tokens that follow"),
        (t5, "it is an encoder with a decoder"),
        (bart, "it is an encoder with a decoder"),
        (headless, "lack 1 of the model's, such as lm_head.weight"),
    ],
    ids=["encoder", "encoder without a name", "t5", "bart", "without a head"],
)
def test_a_model_of_another_kind_is_refused(
    make: Callable[..., Path], words: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_model(make(tokenizer, tmp_path / "model"))


def test_known_models_are_read_without_the_code_in_their_folder(llama: Path, train: Callable[..., int]) -> None:
    edit_json(llama / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    (llama / "modeling_llama.py").write_text("raise SystemExit('it was run')")

    assert 0 == train(llama)


def test_weights_that_no_layer_uses_are_named(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import save_file

    weights = load_file(llama / "model.safetensors")
    save_file(weights | {"score.weight": torch.zeros(2, 16)}, llama / "model.safetensors", {"format": "pt"})

    load_model(llama)
    DeferredModels().read(llama)

    assert 2 == caplog.messages.count(f"{llama}: 1 weights are not used, such as score.weight.")


def test_a_folder_without_a_tokenizer_is_refused(
    llama: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()

    assert 2 == train(llama)

    assert f"{llama} contains no tokenizer" in capsys.readouterr().err


def test_half_a_character_in_a_calls_arguments_names_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = {"name": "search", "arguments": '{"city": "\\ud83d"}'}
    messages = [
        {"role": "user", "content": "How is it there?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "21 degrees"},
        {"role": "assistant", "content": "21 degrees"},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": messages, "tools": [WEATHER]}) + "\n")

    assert 2 == train_process("process", [f"data.path={data}", "loss.kd=0", "--output-dir", str(tmp_path / "out")])

    assert f"{data}, line 1: the arguments of search" in (said := capsys.readouterr().err)
    assert "lone surrogate" in said


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in a checkpoint."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for each in inner for tensor in _tensors(each)]
