"""sample() and score() against worked examples, the model's own logits, and themselves cut otherwise."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))  # torchrun starts this file as a script: see two_processes
import rollout as R

torch.set_num_threads(1)
PROMPTS = ["7+5-3=?", "(1+2)/4=?", "1+1-1+1-1+5+9+9=?", "2+2=?"]
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256)  # fmt: skip
GPT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
WINDOW = dict(head_dim=8, sliding_window=6, query_pre_attn_scalar=8)
# One case per way of being different: what it is here for.
ARCHITECTURES = {
    "qwen2": ("Qwen2Config", SIZES),  # untied head
    "qwen2-tied": ("Qwen2Config", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 8}),  # norms inside attention
    "llama": ("LlamaConfig", SIZES),
    "gemma": ("GemmaConfig", SIZES | {"head_dim": 8}),  # scaled embeddings
    "gemma2": ("Gemma2Config", SIZES | WINDOW),  # soft-capped logits, alternating windows
    "gemma3": ("Gemma3TextConfig", SIZES | WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("MistralConfig", SIZES | {"sliding_window": 6, "head_dim": 8}),  # every layer a window
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),  # learned positions, another name for the base
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi: no position ids at all
    "phi": ("PhiConfig", SIZES),  # a head with a bias
    "cohere": ("CohereConfig", SIZES | {"logit_scale": 0.25}),  # multiplied logits
    "granite": ("GraniteConfig", SIZES | {"logits_scaling": 3.0}),  # divided logits
    "qwen3-moe": ("Qwen3MoeConfig", SIZES | dict(head_dim=8, num_experts=4, num_experts_per_tok=2,
                                                 moe_intermediate_size=16)),  # experts
    "qwen3-next": ("Qwen3NextConfig", SIZES | dict(
        num_hidden_layers=4, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8)),  # three recurrent layers, one with attention
}  # fmt: skip


def make_tokenizer():
    """Characters; pad is 0 and EOS 1."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", *"0123456789+-/()=?. ", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>",
                                                unk_token="<unk>")  # fmt: skip


def tiny(name="qwen2", **more):
    """A model with random weights, large enough that its softmax is not flat."""
    torch.manual_seed(0)
    config_class, sizes = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(
        vocab_size=len(make_tokenizer()), initializer_range=0.3, eos_token_id=1, bos_token_id=None, pad_token_id=0,
        **sizes | more)  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def drawn(model, tokenizer):
    return R.sample(model, tokenizer, PROMPTS, 8, 24, 1.0, 0)


def same(a, b, rows_a=slice(None), rows_b=slice(None), tolerance=1e-5):
    """Equal rows: tokens exactly, log-probs up to float noise, whatever the padding."""
    n = min(a.mask.shape[1], b.mask.shape[1])
    assert torch.equal(a.mask[rows_a].sum(1), b.mask[rows_b].sum(1))
    mask = a.mask[rows_a, :n]
    assert torch.equal(a.tokens[rows_a, :n][mask], b.tokens[rows_b, :n][mask])
    torch.testing.assert_close(a.logprobs[rows_a, :n], b.logprobs[rows_b, :n], atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------- the head
def naive(hidden, weight, tokens, temperature, cap):
    """What _TiledHead computes, from whole logits."""
    logits = hidden @ weight.T
    logits = logits if cap is None else cap * (logits / cap).tanh()
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_head_by_hand():
    # logits 0 and 2 log 3, temperature 2: odds 1 : 3
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [2 * math.log(3)]])
    logp, entropy = R._TiledHead.apply(hidden, weight, torch.tensor([1]), 2.0, None, True)
    assert logp.item() == pytest.approx(math.log(3 / 4))
    assert entropy.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


@pytest.mark.parametrize("tile", [1, 3, 7, 100])  # 7 tokens: one at a time, a rest, exactly, more than there are
@pytest.mark.parametrize("cap", [None, 2.0])
def test_head_is_the_naive_one_with_its_gradients(tile, cap, monkeypatch):
    monkeypatch.setattr(R, "TILE", tile)
    torch.manual_seed(0)
    inputs = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) * 3,
              torch.randn(7, 4, dtype=torch.float64, requires_grad=True) * 3]  # fmt: skip
    tokens, upstream = torch.tensor([0, 6, 3, 2, 6]), torch.randn(2, 5, dtype=torch.float64)
    for entropy in (True, False):
        ours = R._TiledHead.apply(*inputs, tokens, 0.7, cap, entropy)[: 1 + entropy]
        theirs = naive(*inputs, tokens, 0.7, cap)[: 1 + entropy]
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(out, inputs, list(upstream[: 1 + entropy])) for out in (ours, theirs)]
        torch.testing.assert_close(*gradients)


def test_head_gradcheck(monkeypatch):
    monkeypatch.setattr(R, "TILE", 2)
    hidden, weight = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(lambda h, w: R._TiledHead.apply(h, w, torch.tensor([0, 2, 1]), 1.3, None, True),
                             (hidden, weight))  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_head_at_extremes(scale, monkeypatch):
    """One tile far above or below another, in either order: nothing overflows, a sure token has entropy 0."""
    monkeypatch.setattr(R, "TILE", 1)
    weight = torch.tensor([[-1.0], [0.0], [1.0], [-2.0]]) * scale
    ours = R._TiledHead.apply(torch.ones(1, 1), weight, torch.tensor([2]), 1.0, None, True)
    torch.testing.assert_close(ours, naive(torch.ones(1, 1).double(), weight.double(), torch.tensor([2]), 1.0, None),
                               check_dtype=False)  # fmt: skip


def test_head_never_holds_all_logits(monkeypatch):
    """No tensor of a forward or backward is as large as [N, V]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **kwargs or {})
            largest = max([largest, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x))])
            return out

    monkeypatch.setattr(R, "TILE", 16)
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(512, 4, requires_grad=True)
    with Watch():
        logp, entropy = R._TiledHead.apply(hidden, weight, torch.arange(64), 1.0, None, True)
        (logp + entropy).sum().backward()
    assert largest == 512 * 4  # the weight's own gradient; [N, V] would be 32,768


def test_bf16_is_widened_before_the_softmax():
    hidden, weight = torch.randn(6, 32).bfloat16(), torch.randn(500, 32).bfloat16()
    ours = R._TiledHead.apply(hidden, weight, torch.arange(6), 1.0, None, True)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    logp = (hidden @ weight.T).float().log_softmax(-1)
    torch.testing.assert_close(ours[0], logp[torch.arange(6), torch.arange(6)])


# ---------------------------------------------------------------------------------------------- scoring
def own_logprobs(model, rollout, temperature):
    """Row by row, unpadded, from the model's own whole logits: what score() must give."""
    logprobs, entropy = torch.zeros(2, *rollout.mask.shape)
    for i, n in enumerate(rollout.mask.sum(1).tolist()):
        prompt = rollout.prompt_tokens[i][rollout.prompt_mask[i]]
        answer = rollout.tokens[i, :n]
        logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        logp = (logits.float() / temperature).log_softmax(-1)
        logprobs[i, :n], entropy[i, :n] = logp.gather(1, answer[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    return logprobs, entropy


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, tokenizer):
    """Sampled = scored = the model's own log-probs; questions that come in late change nothing."""
    model = tiny(name)
    R.check_head(model)
    rollout = R.sample(model, tokenizer, PROMPTS, 4, 16, 1.3, 0)
    with torch.no_grad():
        logprobs, entropy = R.score(model, rollout, 1.3)
        expected = own_logprobs(model, rollout, 1.3)
    torch.testing.assert_close(logprobs, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, expected[1], atol=1e-5, rtol=0)
    # recurrent layers read a prompt in chunks and write token by token: two orders of float32 sums
    torch.testing.assert_close(rollout.logprobs, expected[0], atol=5e-4 if "next" in name else 1e-5, rtol=0)
    assert entropy[rollout.mask].std() > 0.01
    same(rollout, R.sample(model, tokenizer, PROMPTS, 4, 16, 1.3, 0, cache_gib=gib_for(model, 2, 4, 16)))


def test_unknown_logits_are_refused():
    class Doubling(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = tiny()
    model.lm_head.__class__ = Doubling
    with pytest.raises(ValueError, match="does something to its logits"):
        R.check_head(model)


@pytest.mark.parametrize("budget", [1, 50, 100, 10**9])
def test_the_budget_changes_nothing(model, drawn, budget):
    with torch.no_grad():
        whole, cut = R.score(model, drawn, 1.0), R.score(model, drawn, 1.0, tokens_per_micro_batch=budget)
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=0)


def test_micro_batches():
    assert R.micro_batches([5, 1, 3, 5], 10) == [[0, 3], [2, 1]]
    assert R.micro_batches([5, 1, 3, 5], 1) == [[0], [3], [2], [1]]  # a row too long still goes, alone
    assert R.micro_batches([], 10) == []
    lengths = torch.randint(1, 300, (200,)).tolist()
    pieces = R.micro_batches(lengths, 1000)
    assert sorted(sum(pieces, [])) == list(range(200))
    assert all(len(piece) * max(lengths[i] for i in piece) <= 1000 for piece in pieces)


def widened(r, left, right, pad):
    """The same rollout in more padding."""
    grow = torch.nn.functional.pad
    return R.Rollout(grow(r.prompt_tokens, (left, 0), value=pad), grow(r.prompt_mask, (left, 0)),
                     grow(r.tokens, (0, right), value=pad), grow(r.mask, (0, right)), grow(r.logprobs, (0, right)),
                     r.texts, r.finished)  # fmt: skip


@pytest.mark.parametrize("pad", [0, 1, 5])  # 1 is EOS
def test_padding_changes_nothing(model, drawn, pad):
    with torch.no_grad():
        plain, wide = R.score(model, drawn, 1.0), R.score(model, widened(drawn, 3, 7, pad), 1.0)
    for a, b in zip(plain, wide, strict=True):
        torch.testing.assert_close(a, b[:, : a.shape[1]], atol=1e-5, rtol=0)
        assert not b[:, a.shape[1] :].any()


def test_gradients_do_not_depend_on_the_cut_or_on_checkpointing(drawn):
    gradients = []
    for pieces, checkpointing in (([list(range(32))], False), (R.micro_batches(drawn.lengths, 60), False),
                                  (R.micro_batches(drawn.lengths, 200), True)):  # fmt: skip
        model = tiny()
        if checkpointing:
            model.gradient_checkpointing_enable()  # the name that every supported version has
            model.train()
        for piece in pieces:
            part = drawn.rows(piece)
            logprobs, entropy = R.score(model, part, 1.0)
            assert not logprobs[~part.mask].any() and not entropy[~part.mask].any()
            (logprobs * part.tokens.float().sin() + 0.1 * entropy).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[0].norm() > 1
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, atol=1e-3, rtol=1e-4)


def test_rows_takes_a_subset_without_the_padding_of_others(drawn):
    shortest = min(range(32), key=lambda i: drawn.lengths[i])
    one = drawn.rows([shortest])
    assert one.mask.all() and one.prompt_mask.all() and one.texts == [drawn.texts[shortest]]
    assert one.lengths == [drawn.lengths[shortest]] == [one.mask.shape[1] + one.prompt_mask.shape[1]]


# ---------------------------------------------------------------------------------------------- sampling
def gib_for(model, questions, group_size, max_new_tokens):
    """A cache_gib that holds so many questions of PROMPTS at a time."""
    cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True)[R._cache_name(model)]
    token = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if hasattr(layer, "keys"))
    return token * group_size * (max(map(len, PROMPTS)) + max_new_tokens) * (questions + 0.5) / 2**30


def test_shapes_and_masks(drawn, tokenizer):
    r = drawn
    assert len(r.texts) == len(r.tokens) == 32 and r.mask.dtype == r.finished.dtype == torch.bool
    for i in range(32):
        n = int(r.mask[i].sum())
        assert r.mask[i, :n].all() and not r.mask[i, n:].any()
        ended = (r.tokens[i, :n] == 1).nonzero()[:, 0].tolist()
        assert ended == ([n - 1] if r.finished[i] else [])  # EOS is inside the mask, last, and once
        assert n == 24 or r.finished[i]
        kept = r.tokens[i, : n - int(r.finished[i])]
        assert r.texts[i] == tokenizer.decode(kept, skip_special_tokens=True)
        prompt = r.prompt_tokens[i][r.prompt_mask[i]]
        assert tokenizer.decode(prompt) == PROMPTS[i // 8] and r.prompt_mask[i, -1]
    assert r.finished.any() and not r.finished.all()  # or this test sees one half only


@pytest.mark.parametrize("questions", [1, 2, 3])
def test_memory_changes_nothing(model, tokenizer, drawn, questions):
    """Questions wait for places: the same answers as all at once."""
    same(drawn, R.sample(model, tokenizer, PROMPTS, 8, 24, 1.0, 0, cache_gib=gib_for(model, questions, 8, 24)))


def test_a_row_depends_on_its_question_seed_and_place_only(model, tokenizer, drawn):
    seeds = [R.position_seed(0, q) for q in range(4)]  # what an int means
    alone = R.sample(model, tokenizer, [PROMPTS[2]], 8, 24, 1.0, [seeds[2]])
    same(drawn, alone, slice(16, 24))
    shuffled = R.sample(model, tokenizer, [PROMPTS[i] for i in (3, 0)], 8, 24, 1.0, [seeds[3], seeds[0]])
    same(drawn, shuffled, slice(24, 32), slice(0, 8))
    same(drawn, shuffled, slice(0, 8), slice(8, 16))
    smaller_group = R.sample(model, tokenizer, PROMPTS[:1], 3, 24, 1.0, seeds[:1])
    same(drawn, smaller_group, slice(0, 3))
    longer = R.sample(model, tokenizer, PROMPTS[:1], 8, 40, 1.0, seeds[:1])
    n = drawn.mask.shape[1]
    assert torch.equal(longer.tokens[:, :n][drawn.mask[:8]], drawn.tokens[:8][drawn.mask[:8]])
    other = R.sample(model, tokenizer, PROMPTS, 8, 24, 1.0, 1)
    assert not torch.equal(other.tokens[:, :4], drawn.tokens[:, :4])
    assert len({tuple(row) for row in drawn.tokens[:8].tolist()}) == 8  # no two of a group drew the same numbers


def test_sampling_leaves_no_trace(model, tokenizer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.train()
    R.sample(model, tokenizer, PROMPTS[:1], 2, 3, 1.0, 0)
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()


def chi_square(counts, expected):
    """Pearson's statistic over cells of at least 5 expected counts, the rest as one; and the cells' number."""
    big = expected >= 5
    cells = [(counts[big], expected[big]), (counts[~big].sum()[None], expected[~big].sum()[None])]
    cells = [(c, e) for c, e in cells if e.sum() > 0]
    return sum(((c - e) ** 2 / e).sum().item() for c, e in cells), sum(len(e) for _, e in cells)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.5, 1.0), (1.0, 0.6)])
def test_frequencies_are_the_softmax(model, tokenizer, temperature, top_p):
    """8,000 first tokens; top-k off, temperature applied, top-p only if asked. Fixed seed; threshold: 5 sigma."""
    n = 8000
    r = R.sample(model, tokenizer, PROMPTS[:1], n, 1, temperature, 3, top_p=top_p)
    logits = model(input_ids=r.prompt_tokens[:1]).logits[0, -1].detach()
    p = (logits / temperature).softmax(-1)
    torch.testing.assert_close(r.logprobs[:, 0], p.log()[r.tokens[:, 0]], atol=1e-5, rtol=0)  # of the whole softmax
    if top_p < 1:
        ranked, order = p.sort(descending=True)
        p[order[ranked.cumsum(0) - ranked >= top_p]] = 0
        assert 1 < (p > 0).sum() < len(p) / 2
    counts = torch.bincount(r.tokens[:, 0], minlength=len(p)).float()
    assert not counts[p == 0].any()
    statistic, cells = chi_square(counts, n * p / p.sum())
    assert statistic < cells - 1 + 5 * (2 * (cells - 1)) ** 0.5
    assert abs(statistic - (cells - 1)) > 1e-3  # not the expectation itself


def test_uniforms_are_uniform_and_unrelated():
    u = R.uniforms(torch.arange(50), 8, 100)  # seeds as close together as can be
    assert u.shape == (400, 100) and 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5
    centred = u - 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[8:], centred[:-8]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean()) < 5 / 12 / a.numel() ** 0.5  # rows, questions, positions
    assert len(u.unique()) > 0.99 * u.numel() - u.numel() ** 2 / 2**24


def test_a_token_of_no_probability_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).repeat(2, 1)
    token, logp = R._draw(logits, torch.tensor([0.0, 1 - 2**-23]), 1.0, 1.0)
    assert token.tolist() == [1, 3] and logp.isfinite().all()
    assert R._draw(logits, torch.tensor([0.9, 0.99]), 1.0, 1e-9)[0].tolist() == [3, 3]  # a tiny top-p: the best one


def test_every_eos_ends_an_answer(tokenizer):
    model = tiny()
    model.generation_config.eos_token_id = [4, 5]  # chat models list two; the tokenizer's own (1) stays one
    r = R.sample(model, tokenizer, PROMPTS, 16, 40, 1.0, 0)
    last = {r.tokens[i, int(r.mask[i].sum()) - 1].item() for i in range(64) if r.finished[i]}
    assert last == {1, 4, 5}
    inside = r.mask & (torch.arange(r.mask.shape[1]) < r.mask.sum(1, keepdim=True) - 1)
    assert not torch.isin(r.tokens[inside], torch.tensor([1, 4, 5])).any()


def test_pad_may_be_eos(model, drawn):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    r = R.sample(model, tokenizer, PROMPTS, 8, 24, 1.0, 0)
    assert torch.equal(r.mask, drawn.mask) and torch.equal(r.tokens[r.mask], drawn.tokens[drawn.mask])
    assert (r.tokens[~r.mask] == 1).all() and (r.tokens[r.mask] == 1).sum() == r.finished.sum()


def test_bos_is_written_once(model, drawn):
    """A template that has written it already is not given a second; a tokenizer that adds it, adds it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "="
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="= $A", special_tokens=[("=", bos)])
    plain = R.sample(model, tokenizer, ["1+1"], 1, 2, 1.0, 0).prompt_tokens[0].tolist()
    templated = R.sample(model, tokenizer, ["=1+1"], 1, 2, 1.0, 0).prompt_tokens[0].tolist()
    assert plain == templated and plain.count(bos) == 1


@pytest.mark.parametrize("name", ["qwen2", "gemma"])  # two query heads share a key; scaled embeddings
def test_the_candidate_for_gpus_draws_the_same(name, tokenizer, monkeypatch):
    """benchmarks/static.py, here without graphs: fixed buffers, packed rows, attention by groups."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import static

    model = tiny(name)
    r = R.sample(model, tokenizer, PROMPTS, 8, 40, 1.3, 0)
    assert r.finished.sum() > 12  # rows are packed
    same(r, static.sample(model, tokenizer, PROMPTS, 8, 40, 1.3, 0))
    with static.grouped_attention(model):
        same(r, R.sample(model, tokenizer, PROMPTS, 8, 40, 1.3, 0))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wrong", [dict(prompts=[]), dict(prompts=["1+1", ""]), dict(group_size=0), dict(top_p=0.0),
                                   dict(max_new_tokens=0), dict(temperature=0.0), dict(cache_gib=1e-6)])  # fmt: skip
def test_bad_arguments(model, tokenizer, wrong):
    good = dict(prompts=PROMPTS, group_size=2, max_new_tokens=3, temperature=1.0, seed=0)
    with pytest.raises(ValueError) as error:
        R.sample(model, tokenizer, **good | wrong)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- loading
@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny("gpt2").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_load(folder):
    model, tokenizer = R.load_model(folder, "cpu", torch.float32), R.load_tokenizer(folder)
    assert not model.training and model.dtype == torch.float32 and tokenizer.padding_side == "left"
    model.train()  # GPT-2 has dropout of 0.1 in its config: a scored policy must not
    a, b = (model(input_ids=torch.arange(5)[None]).logits for _ in range(2))
    assert torch.equal(a, b)


def test_a_tokenizer_without_pad_pads_with_eos(folder, tmp_path, tokenizer):
    bare = make_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    assert R.load_tokenizer(tmp_path).pad_token_id == tokenizer.eos_token_id


def broken(folder, tmp_path, how):
    """A copy of the folder with one thing wrong."""
    import shutil

    path = tmp_path / "broken"
    shutil.copytree(folder, path)
    if how == "no tokenizer":
        for file in path.glob("token*"):
            file.unlink()
    elif how == "no weights":
        (path / "model.safetensors").rename(path / "elsewhere")
    elif how == "cut weights":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:5000])
    elif how == "weights of another size":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    elif how == "a missing layer":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    else:
        tokenizer = make_tokenizer()
        if how == "no EOS":
            tokenizer.eos_token = None
        else:
            tokenizer.add_tokens([f"<{i}>" for i in range(9)])
        tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("how", ["no tokenizer", "no weights", "cut weights", "weights of another size",
                                 "a missing layer", "no EOS", "too many tokens"])  # fmt: skip
def test_broken_folders_are_named_in_one_line(folder, tmp_path, how):
    path = broken(folder, tmp_path, how)
    with pytest.raises(ValueError) as error:
        R.load_model(path, "cpu", torch.float32)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["./nothing", "/no/such/folder", "~/models/sent", "a/b/c", "tests/nothing"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ValueError, match="no such model folder"):
        R.load_tokenizer(path)


# ---------------------------------------------------------------------------------------------- two processes
def one_rank(rank, world):
    """What each rank does, and one process as well: sample its own questions, score, one gradient."""
    model = R.shard(tiny("qwen2-tied"))
    mine = list(range(rank, 4, world))
    with R.gathered(model):
        rollout = R.sample(model, make_tokenizer(), [PROMPTS[q] for q in mine], 4, 16 + 8 * rank * (world > 1), 1.0,
                           [R.position_seed(0, q) for q in mine])  # fmt: skip
    rollout = rollout.rows(torch.arange(len(rollout.mask)))
    with torch.no_grad():
        old, _ = R.score(model, rollout, 1.0, tokens_per_micro_batch=60 + 100 * rank)  # another number of pieces
    keep = rollout.mask & (torch.arange(rollout.mask.shape[1]) < 16)
    logprobs, entropy = R.score(model, rollout, 1.0)
    loss = ((logprobs * rollout.tokens.float().sin() + entropy) * keep).sum()
    (loss * world).backward()  # FSDP averages over ranks
    gradient = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    whole = [R.gather(x * keep) for x in (rollout.tokens, old, entropy.detach(), rollout.mask)]
    total = R.gather(loss.detach()[None]).sum()
    return [x[:, :16] for x in whole] + [total, torch.cat([g.flatten() for g in gradient])]


def torchrun(*arguments):
    """This file as a script in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def test_two_processes_are_one(tmp_path):
    done = torchrun("work", str(tmp_path / "two.pt"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stderr.replace("FutureWarning", ""), done.stderr
    one, two = one_rank(0, 1), torch.load(tmp_path / "two.pt")
    order = [0, 2, 1, 3]  # rank 0 had questions 0 and 2
    for a, b in zip(one[:-2], two[:-2], strict=True):
        b = b.unflatten(0, (4, 4))[order].flatten(0, 1)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(one[-2], two[-2], atol=0, rtol=1e-5)  # the loss
    assert one[-1].norm() > 1 and (one[-1] - two[-1]).norm() < 1e-5 * one[-1].norm()  # its gradient


def test_a_rank_that_dies_takes_the_other_down():
    done = torchrun("die")  # within the 120 s of torchrun(), or TimeoutExpired
    assert done.returncode != 0 and "still here" not in done.stdout


if __name__ == "__main__":
    rank, world, _ = R.distributed("cpu")
    if sys.argv[1] == "die":
        if rank == 1:
            sys.exit(3)
        R.barrier()
        R.gather(torch.zeros(1))
        print("still here")
    results = one_rank(rank, world)
    if rank == 0:
        torch.save(results, sys.argv[2])
