"""The formulas against real models, the paper's figures against the formulas, and the claim that measures both."""

import dataclasses

import numpy as np
import pytest
from helpers import ALL_TARGETS, tiny_gpt
from made_up_claims import check_numbers

import minilora as ml
from minilora import budget
from minilora import functional as F
from minilora.baselines import PromptTuned, add_adapters, add_prefix, bitfit
from minilora.budget import PRESETS, shape_of
from minilora.claims import paper_figures as paper
from minilora.claims import training_cost as claim
from minilora.claims.claim import FAILS, HOLDS, NOISE, Settings
from minilora.claims.figures import save_figure
from minilora.claims.paper_figures import AGREES, DIFFERS, EXACT, NOT_DERIVABLE, PaperFigure
from minilora.interop.checkpoint import save_checkpoint
from minilora.nn import Linear
from minilora.tools.cost_tables import budget_text

TINY = PRESETS["tiny"]
IN_BLOCKS = pytest.mark.numpy_only("it counts blocks of NumPy's memory")
TARGET_SETS = [*((name,) for name in ALL_TARGETS), ("q_proj", "v_proj"), ("o_proj", "fc_out"), ALL_TARGETS]
FIGURES = {(f.where, f.what, f.setting, f.printed): f for f in paper.paper_figures()}


def string_model(dtype="float32"):
    """The sizes of the string tasks' base, untrained."""
    return ml.GPT(ml.GPTConfig(TINY.vocab, TINY.context, TINY.d_model, TINY.n_layers, TINY.n_heads), dtype=dtype)


def figure(what, printed, setting=""):
    """The one figure with this name, row and print."""
    (found,) = [f for f in FIGURES.values() if (f.what, f.printed, f.setting) == (what, printed, setting)]
    return found


# ---- counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tied_head": True}, {"d_model": 12, "n_layers": 3, "vocab_size": 5}], ids=str)
def test_counts_are_those_of_real_models(changes):
    shape = shape_of(tiny_gpt(**changes))
    assert budget.full_count(shape) == tiny_gpt(**changes).num_parameters()
    assert budget.bitfit_count(shape) == sum(p.size for p in bitfit(tiny_gpt(**changes)))
    assert budget.prompt_count(shape, 3) == PromptTuned(tiny_gpt(**changes), 3).num_parameters(trainable_only=True)
    assert budget.prefix_count(shape, 3) == sum(p.size for p in add_prefix(tiny_gpt(**changes), 3))
    for style, numbers in (("houlsby", (2, 0)), ("lin", (1, 1))):
        added = add_adapters(tiny_gpt(**changes), 2, style)
        assert budget.adapter_count(shape, 2, *numbers) == sum(p.size for p in added)
    for targets in TARGET_SETS:
        added = ml.add_lora(tiny_gpt(**changes), ml.LoRAConfig(3, target_modules=targets))
        assert budget.lora_count(shape, 3, targets) == sum(p.size for p in added)


def test_a_prefix_of_minilora_trains_twice_what_the_paper_counts():
    assert budget.prefix_count(TINY, 5) == 2 * budget.prefix_layer_count(TINY, 5) == 2 * 2 * 5 * 64


def test_a_model_without_biases_has_those_of_its_layer_norms():
    bare = dataclasses.replace(TINY, biases=False)
    biases = budget.full_count(TINY) - budget.full_count(bare)
    assert biases == 2 * (4 * 64 + 256 + 64) == budget.bitfit_count(TINY) - budget.bitfit_count(bare)


def test_the_presets_have_the_sizes_that_their_models_are_published_with():
    sizes = {name: budget.full_count(shape) for name, shape in PRESETS.items()}
    assert sizes["gpt2"] == 124_439_808
    assert sizes["gpt2-medium"] == 354_823_168
    assert sizes["gpt2-large"] == 774_030_080
    assert sizes["roberta-base"] == 124_055_040  # without its pooler
    assert sizes["roberta-large"] == 354_310_144
    assert 1.5e9 < sizes["deberta-xxl"] < 1.6e9 and 174e9 < sizes["gpt3-175b"] < 175e9
    assert dataclasses.replace(shape_of(string_model()), name="tiny") == TINY


# ---- bytes -------------------------------------------------------------------------------------------


def test_a_budget_is_what_a_step_holds(tmp_path):
    for dtype, size in (("float32", 4), ("float64", 8)):
        for targets in (None, ("q_proj", "fc_out")):
            model = string_model(dtype)
            shape = shape_of(model)
            if targets is None:
                optimizer, expected = ml.Adam(model.parameters(), 1e-3), budget.full_budget(shape, 2, 8)
            else:
                added = ml.add_lora(model, ml.LoRAConfig(3, target_modules=targets))
                optimizer, expected = ml.Adam(added, 1e-3), budget.lora_budget(shape, 3, targets, 2, 8)
            ids = np.random.default_rng(0).integers(0, TINY.vocab, (2, 8))
            F.cross_entropy(model(ids), ids).backward()
            assert expected.trainable == model.num_parameters(trainable_only=True)
            assert expected.weights == sum(p.data.nbytes for p in model.parameters()) == size * model.num_parameters()
            assert expected.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            assert expected.adam == sum(a.nbytes for arrays in optimizer.state.values() for a in arrays)
            assert expected.memory == expected.weights + expected.gradients + expected.adam + expected.activations
            assert expected.checkpoint == expected.gradients


@IN_BLOCKS
@pytest.mark.parametrize("targets", [None, *TARGET_SETS], ids=str)
@pytest.mark.parametrize("time", [20, 40])
def test_activations_are_what_the_tape_holds(targets, time):
    model = string_model()
    if targets is not None:
        ml.add_lora(model, ml.LoRAConfig(4, target_modules=targets))
    ids, labels = np.random.default_rng(0).integers(0, TINY.vocab, (2, 4, time))
    held = claim.saved_bytes(F.cross_entropy(model(ids), labels), model)
    assert 4 * budget.activation_count(TINY, 4, time, 4, targets) == pytest.approx(held, rel=claim.ACTIVATIONS_WITHIN)


@IN_BLOCKS
def test_what_the_tape_holds_is_counted_once_and_without_the_parameters():
    model = Linear(50, 1, bias=False)
    weight, x = model.weight, ml.Tensor(np.ones((2, 50), np.float32))
    loss = (x * weight + x[:1] * weight).sum()  # both products keep x, one of them a view of it
    assert claim.saved_bytes(loss, model) == x.data.nbytes
    x.requires_grad = True
    loss = (x * weight).sum()  # keeps the parameter too
    assert claim.saved_bytes(loss, model) == x.data.nbytes


def test_an_encoder_keeps_every_pair_of_positions():
    causal = dataclasses.replace(PRESETS["roberta-base"], causal=True)
    both = [budget.activation_count(shape, 1, 64) for shape in (PRESETS["roberta-base"], causal)]
    assert both[0] - both[1] == 12 * 12 * 32 * 32  # layers, heads, and the half of 64 x 64 that blocks of 32 spare


def test_sizes_read_as_a_person_would_write_them():
    assert [budget.readable(n) for n in (12, 999, 8192, 37_748_736, 349_208_518_656, 1.2e12)] == [
        "12 bytes", "999 bytes", "8.19 kB", "37.7 MB", "349 GB", "1.2 TB",
    ]  # fmt: skip
    assert budget.readable(999_600) == "1 MB" and budget.readable(3.2e15) == "3,200 TB"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: budget.lora_count(TINY, 0, ("q_proj",)), r"be 1 to min\(out, in\) = 64 for q_proj of tiny, not 0"),
        (lambda: budget.lora_count(TINY, 65, ("fc_in",)), r"min\(out, in\) = 64 for fc_in of tiny, not 65"),
        (lambda: budget.lora_count(TINY, 1, ("w_q",)), "no target 'w_q'; there are: q_proj, k_proj, v_proj, o_proj"),
        (lambda: budget.lora_count(TINY, 1, ()), "must be one or more names, each once, not none"),
        (lambda: budget.lora_count(TINY, 1, ("q_proj", "q_proj")), "each once, not q_proj, q_proj"),
        (lambda: budget.preset("gpt4"), "no preset 'gpt4'; there are: tiny, gpt2, gpt2-medium"),
        (lambda: budget.full_budget(TINY, 0, 5), "batch must be at least 1, not 0"),
        (lambda: budget.full_budget(TINY, 1, 41), "time must be 1 to 40, the context of tiny, not 41"),
        (lambda: paper.read_printed("many"), "'many' is no number with one of the units M, MB, GB, TB, %, ×"),
        (lambda: budget_text("tiny", base="strings"), "--preset or --base, not both"),
        (lambda: budget_text(), "--preset NAME, --base FILE, or --paper"),
        (lambda: budget_text(base="no such file.npz"), "no such file.npz"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).endswith(".")


# ---- the paper's figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "step"),
    [
        ("4.7M", 4_700_000, 100_000),
        ("175,255.8M", 175_255_800_000, 100_000),
        ("23.00M", 23_000_000, 10_000),
        ("18M", 18_000_000, 1_000_000),
        ("1500M", 1_500_000_000, 100_000_000),
        ("350 GB", 350 * 10**9, 10**10),
        ("10,000×", 10_000, 10_000),
        ("25 %", 0.25, 0.01),
    ],
)
def test_a_printed_figure_is_read_to_its_last_digit(text, value, step):
    assert tuple(map(float, paper.read_printed(text))) == (value, step)


@pytest.mark.parametrize(
    ("what", "printed", "setting", "computed", "outcome"),
    [
        ("RoB-base LoRA", "0.3M", "", 294_912, AGREES),
        ("RoB-large LoRA", "0.8M", "", 786_432, AGREES),
        ("RoB-base BitFit", "0.1M", "", 102_144, AGREES),
        ("DeBERTa LoRA", "4.7M", "", 2_359_296, DIFFERS),
        ("GPT-2 M LoRA", "0.35M", "", 393_216, DIFFERS),
        ("GPT-2 L LoRA", "0.77M", "", 737_280, DIFFERS),
        ("GPT-2 M FTTop2", "25.19M", "", 25_192_448, AGREES),
        ("GPT-3 LoRA", "4.7M", "v r 2", 4_718_592, AGREES),
        ("GPT-3 LoRA", "37.7M", "q,v r 8", 37_748_736, AGREES),
        ("GPT-3 LoRA", "18.8M", "q,v r 4", 18_874_368, DIFFERS),
        ("GPT-3 LoRA in App. D.4", "37.7M", "q,k,v,o r 2", 18_874_368, DIFFERS),
        ("GPT-3 LoRA+PE", "151.1M", "q,v r 32", 151_142_400, AGREES),
        ("GPT-3 LoRA+PL", "52.8M", "q,v r 8", 51_904_512, DIFFERS),
        ("GPT-3 PreEmbed", "3.2M", "256+8", 3_244_032, AGREES),
        ("GPT-3 BitFit", "14.2M", "", 12_988_416, DIFFERS),
        ("GPT-3 LoRA checkpoint", "35 MB", "", 37_748_736, DIFFERS),
        ("100 tasks with LoRA", "354 GB", "", 353_500_000_000, AGREES),
        ("100 tasks with FT", "35 TB", "", 35 * 10**12, EXACT),
        ("GPT-3 FT memory", "1.2 TB", "", None, NOT_DERIVABLE),
        ("GPT-3 FT", "175,255.8M", "", None, NOT_DERIVABLE),
        ("GPT-2 M FT", "354.92M", "", None, NOT_DERIVABLE),
    ],
)
def test_the_outcome_of_a_figure(what, printed, setting, computed, outcome):
    found = figure(what, printed, setting)
    assert (found.computed, found.outcome) == (computed, outcome)


def test_prefix_layer_rows_all_differ_and_adapter_rows_agree_only_without_the_layer_norms():
    prefixes = [f for f in FIGURES.values() if f.what == "GPT-3 PreLayer"]
    assert len(prefixes) == 5 and {f.outcome for f in prefixes} == {DIFFERS}
    adapters = [f for f in FIGURES.values() if f.what == "GPT-3 AdapterH"]
    assert len(adapters) == 5 and {f.outcome for f in adapters} == {AGREES}
    for f in adapters:
        m = int(f.setting.removeprefix("width "))
        with_norms = budget.adapter_count(PRESETS["gpt3-175b"], m, adapters=2, norms=2)
        assert dataclasses.replace(f, computed=with_norms).outcome == DIFFERS


def test_an_outcome_follows_the_figures():
    roberta = figure("RoB-base LoRA", "0.3M")
    for printed, outcome in (("0.29M", AGREES), ("0.4M", DIFFERS), ("294,912", EXACT), ("294,913", DIFFERS)):
        assert dataclasses.replace(roberta, printed=printed).outcome == outcome
    assert dataclasses.replace(roberta, computed=None).outcome == NOT_DERIVABLE
    assert dataclasses.replace(roberta, computed=350_000).outcome == AGREES  # just half a step off
    assert dataclasses.replace(roberta, computed=350_001).outcome == DIFFERS


def test_digits_cut_off_are_told_from_other_differences():
    cut = {f.printed for f in FIGURES.values() if f.cut_off}
    assert cut == {"0.4M", "18.8M", "301.9M", "18M", "37.8M"}
    assert not PaperFigure("", "", "18.9M", "", 18_874_368).cut_off  # it agrees
    assert not PaperFigure("", "", "1M", "", None).cut_off


def test_every_formula_shown_gives_the_number_shown():
    assert len(FIGURES) == len(paper.paper_figures())
    for f in FIGURES.values():
        paper.read_printed(f.printed)
        if f.computed is not None:
            arithmetic = f.formula.replace("·", "*").replace(",", "")
            assert eval(arithmetic, {"__builtins__": {}}) == pytest.approx(float(f.computed), rel=1e-12), f


def test_a_setting_that_would_fit_is_searched_for_what_the_paper_does_not_state():
    assert figure("GPT-2 M AdapterL", "0.37M").note == "AdapterL width 6 would give 368,784"
    assert figure("GPT-2 M PreLayer", "0.35M").note.startswith("no prefix length gives it: 14 gives 344,064 and 15")


# ---- the command -------------------------------------------------------------------------------------


def test_the_text_of_a_preset():
    text = budget_text("gpt3-175b", r=4, targets=("q_proj", "v_proj"))
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["parameters that train"][-3:] == ["174,604,259,328", "18,874,368", "0.000108"]
    assert lines["Adam's m and v"][-5:] == ["698", "GB", "75.5", "MB", "0.000108"]
    assert "1 x 2,048 tokens" in text and "The paper's" not in text


def test_the_text_of_a_base_and_of_a_file_says_the_same(tmp_path):
    save_checkpoint(tmp_path / "base.npz", string_model())
    settings = {"r": 2, "targets": ("o_proj",), "batch": 3, "time": 7}
    of_file = budget_text(base=str(tmp_path / "base.npz"), **settings)
    of_recipe = budget_text(base="strings", **settings)
    assert of_file.split(":", 1)[1] == of_recipe.split(":", 1)[1]
    assert of_recipe.startswith("strings: 114,944 parameters") and "3 x 7 tokens" in of_recipe


def test_the_text_of_the_paper_shows_every_figure_with_its_outcome():
    short = {EXACT: "exact", AGREES: "agrees", DIFFERS: "differs", NOT_DERIVABLE: "not stated"}
    text = budget_text("gpt2", paper=True, full=True)
    assert text.startswith("gpt2:")
    for f in FIGURES.values():
        outcome = "cut off" if f.cut_off else short[f.outcome]
        assert any(f.what[:20] in line and f.printed in line and line.endswith(outcome) for line in text.splitlines())
    assert "2·12·2·768·8 = 294,912" in text and "not stated: the adapters' width" in text
    assert "digits cut off" in text


def test_the_paper_s_figures_are_one_line_each_in_80_columns():
    lines = budget_text(paper=True).splitlines()
    assert max(map(len, lines)) <= 80 and max(map(len, budget_text(paper=True, full=True).splitlines())) <= 80
    table = lines[lines.index("") + 1 : -2]
    assert len(table) == 1 + len(paper.paper_figures()) and table[0].split() == [
        "where", "what", "printed", "computed", "outcome",
    ]  # fmt: skip
    rows = {tuple(line.split()) for line in table}
    assert ("Table", "15", "GPT-3", "LoRA", "q,v", "r", "4", "18.8M", "18.874M", "cut", "off") in rows
    assert ("§4.2", "GPT-3", "LoRA", "memory", "350", "GB", "350.66", "GB", "agrees") in rows
    assert ("§4.2", "GPT-3", "smaller", "checkpoint", "10,000×", "10,000×", "exact") in rows
    assert ("abstract", "GPT-3", "less", "memory", "3×", "3.43×", "agrees") in rows
    assert ("§4.2", "GPT-3", "faster", "training", "25", "%", "24.59", "%", "agrees") in rows


# ---- the claim ---------------------------------------------------------------------------------------


def synthetic(ratio=0.75, spread=0.02, products=0, **changes):
    """Runs in which everything is as the formulas say, but for `changes` of LoRA's bytes and so many multiply-adds."""
    configuration = {"measure": "bytes", "batch": 32, "time": 20}
    measured = {}
    for method, expected in (
        ("full", budget.full_budget(TINY, 32, 20)),
        ("lora", budget.lora_budget(TINY, claim.R, claim.TARGETS, 32, 20)),
    ):
        measured[method] = {**vars(expected), "file": expected.checkpoint + 1500}
    measured["lora"].update(changes)
    times = {"full": [10.0] * 15, "lora": list(10 * np.linspace(ratio - spread, ratio + spread, 15))}
    configurations = claim.configurations(Settings(1))
    n, r = claim.N, claim.R
    matrix = {"full": 3 * n * n, "lora": 2 * n * n + 6 * n * r + products}
    steps = [{"full": 300, "lora": 210}] * len(claim.STEPS)
    counted = [(c, {"matrix": matrix, "step": steps}) for c in configurations if c["measure"] == "products"]
    return [(configuration, measured), *counted, *((c, times) for c in configurations if c["measure"] == "time")]


def test_budget_verdict_needs_the_formulas_and_faster_steps():
    outcome = claim.CLAIM.conclude(synthetic())
    assert outcome.verdict == HOLDS
    check_numbers(outcome)
    assert "2,048 of 114,944 parameters train; bytes as the formulas say" in outcome.measured
    assert "0.75, 0.75, 0.75 of a full one's time and 0.70, 0.70, 0.70 of its multiply-adds" in outcome.measured
    assert claim.CLAIM.conclude(synthetic(ratio=1.1)).verdict == FAILS
    assert claim.CLAIM.conclude(synthetic(ratio=0.98, spread=0.1)).verdict == NOISE
    assert claim.CLAIM.conclude(synthetic(products=1)).verdict == FAILS
    for name, wrong in (
        ("gradients", 8193),
        ("adam", 0),
        ("trainable", 2049),
        ("weights", 1),
        ("activations", 4_450_000),
        ("file", 8192 + 4097),
    ):
        outcome = claim.CLAIM.conclude(synthetic(**{name: wrong}))
        assert outcome.verdict == FAILS and "not as the formulas say" in outcome.measured, name


def test_a_token_and_a_matrix_take_three_products_or_two_and_six_thin_ones():
    for n, r in ((8, 2), (64, 4)):
        counts = claim._products([], n, r)["matrix"]
        assert counts == {"full": 3 * n * n, "lora": 2 * n * n + 6 * n * r}


@IN_BLOCKS
def test_a_small_run_of_the_claim_measures_what_the_formulas_say_and_is_drawn(tmp_path):
    runs = [({"measure": "bytes", "batch": 4, "time": 20}, claim.run({"measure": "bytes", "batch": 4, "time": 20}))]
    assert claim.misses(runs) == []
    small = {"measure": "time", "batch": 16, "time": 64, "d_model": 64, "layers": 2, "rounds": 2}
    runs.append((small, claim.run(small)))
    assert all(len(times) == 2 and min(times) > 0 for times in runs[1][1].values())
    products = {"measure": "products", "sizes": [[16, 64, 64, 2]], "matrix": [8, 2]}
    runs.append((products, claim.run(products)))
    assert 0.6 < claim.products_ratio(runs, (16, 64, 64, 2))[0] < 0.75
    assert claim.CLAIM.experiment.alone and claim.CLAIM.rule.startswith("holds if")
    save_figure(tmp_path / "budget.png", lambda figure: claim.draw(runs, figure))
    assert (tmp_path / "budget.png").read_bytes()[:4] == b"\x89PNG"
