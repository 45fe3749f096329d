"""The discriminator: LoRA experts and two score heads on the policy's own frozen backbone.

Each adapted decoder layer gets E low-rank experts beside its frozen MLP, mixed by a router. They act on
completion tokens only, so a prompt's states are those of the frozen trunk: they are computed once per
prompt, and a step runs the parts' tokens only. A part is scored at the end token that closes it, the same
for teacher and student. No activation is stored below the first adapted layer. METHOD section 2.

The heads also see the mean and minimum token log-prob of the part under this language model with the
picture in context, minus those of the first completion of the same prompt (the teacher): without them the
discriminator learns the teacher's style and not what the picture shows (METHOD section 6).

Shape letters: R parts (branches), N part tokens, M those of their bodies, F tokens of a forward (prompts'
last tokens, then part tokens), K completions, T tokens of one part, L adapted layers, D hidden, E experts;
in K22 the first 2 are channels (perception, reasoning).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import triton_kernels as tk
from prism_lite.config import DiscriminatorConfig
from prism_lite.discriminator.losses import cap_scores
from prism_lite.discriminator.part_tokens import (
    PartTokens,
    PromptStateCache,
    num_opening_tokens,
    part_tokens,
)
from prism_lite.files import system_error, write_json
from prism_lite.models.backbone import Backbone
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.packing import Pack, Tree, forward_branches, pack_trees, split_trees
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Parts
from prism_lite.seeding import generator_for

_MAX_CACHED_COMPLETIONS = 4096  # their tokens: about 8 KiB each at 1,000 tokens
_LIKELIHOOD_HEAD_START = (3.0, 0.3)  # weights of a part's mean and minimum token log-prob
_NUM_LIKELIHOOD_FEATURES = len(_LIKELIHOOD_HEAD_START)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of K completions' parts, with their graph.

    Attributes:
        perception_K, reasoning_K: float32 [K], smoothly capped. The likelihood features of a completion
            count relative to the first completion of its prompt in the same call.
        terms_K22: float32 [K, 2 channels, 2 terms], detached: what the hidden state and the likelihood
            features add to the score before the cap, which is monotone.
        balance_loss: [], mean over the adapted layers; 1 when every expert gets its share.
        router_entropy: [], nats, mean over tokens and layers of the routing weights' entropy.
        load_E: [E], fraction of the assignments each expert received.
        routing_weights: of each forward, of each adapted layer: [N, E], detached.
        part_lengths: tokens of each part, in the order of scoring.
    """

    perception_K: Tensor
    reasoning_K: Tensor
    terms_K22: Tensor
    balance_loss: Tensor
    router_entropy: Tensor
    load_E: Tensor
    routing_weights: tuple[tuple[Tensor, ...], ...]
    part_lengths: tuple[int, ...]

    def weights_of_parts(self) -> list[Tensor]:
        """Return the routing weights of each part's tokens, float32 [L, T, E], without a graph.

        Completion after completion in the order of scoring, perception before reasoning.
        """
        weights_LNE = torch.cat([torch.stack(layers) for layers in self.routing_weights], 1)
        return list(weights_LNE.split(self.part_lengths, 1))


class ExpertLayer(nn.Module):
    """Router and experts of one decoder layer; their first contribution is zero (B = 0)."""

    def __init__(
        self, config: DiscriminatorConfig, hidden_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        num_experts = 1 if config.routing == "dense" else config.num_experts
        self.A = nn.Parameter(
            torch.randn(num_experts, config.rank, hidden_size, generator=generator)
            / hidden_size**0.5
        )
        self.B = nn.Parameter(torch.zeros(num_experts, hidden_size, config.rank))
        self.router = nn.Parameter(
            torch.randn(num_experts, hidden_size, generator=generator) / hidden_size**0.5
        )


class Discriminator(nn.Module):
    """Scorer of (prompt, caption) and (prompt, think + answer); use it inside role "discriminator".

    Args:
        num_layers, hidden_size: of the decoder that gets the experts.
        seed: of the experts' initial weights.
    """

    def __init__(
        self, config: DiscriminatorConfig, *, num_layers: int, hidden_size: int, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        num_adapted = max(1, round(num_layers * min(config.adapted_fraction, 1.0)))
        self.first_layer = num_layers - num_adapted
        generator = generator_for(seed, "discriminator", "init")
        self.experts = nn.ModuleList(
            ExpertLayer(config, hidden_size, generator) for _ in range(num_adapted)
        )
        # Likelihood alone decides at first: a part that is likelier under the trunk scores higher.
        start = list(_LIKELIHOOD_HEAD_START) if config.likelihood_features else []
        head = torch.tensor([*[0.0] * hidden_size, *start])
        self.perception_head = nn.Parameter(head.clone())
        self.reasoning_head = nn.Parameter(head.clone())
        self._tokens: LRUCache[Parts, PartTokens] = LRUCache(_MAX_CACHED_COMPLETIONS)
        self.prompt_cache = PromptStateCache(int(config.prompt_cache_gib * 2**30))

    def weaken_likelihood(self, factors: tuple[float, float]) -> None:
        """Multiply the heads' weights of the likelihood features.

        Args:
            factors: of the perception and of the reasoning head.
        """
        heads = (self.perception_head, self.reasoning_head)
        with torch.no_grad():
            for head, factor in zip(heads, factors, strict=True):
                head[-_NUM_LIKELIHOOD_FEATURES:] *= factor

    def score(self, backbone: Backbone, judged: Sequence[tuple[Prompt, Sequence[Parts]]]) -> Scores:
        """Score every completion of every prompt in one forward (or few, of `max_pack_tokens`).

        Args:
            judged: prompts, each with the parts of its completions, the teacher's first: likelihood
                features are relative to those of the first, also where the cap and the penalty on
                squares act, which are not invariant to a shift. A single completion has features 0.

        Returns:
            Scores of all completions, prompt after prompt.
        """
        return self.score_tokens(
            backbone,
            [
                (prompt, [self.part_tokens(backbone, parts) for parts in completions])
                for prompt, completions in judged
            ],
        )

    def score_tokens(
        self, backbone: Backbone, judged: Sequence[tuple[Prompt, Sequence[PartTokens]]]
    ) -> Scores:
        """Score completions as `score` does, given the tokens of their parts."""
        trees, first_K = [], []
        for prompt, completions in judged:
            if completions:
                branches = (ids_C for tokens in completions for ids_C in tokens.branches)
                trees.append(Tree(prompt, tuple(branches)))
                first_K += [len(first_K)] * len(completions)
        packs = split_trees(trees, backbone.config.max_pack_tokens, branches_per_unit=2)
        scored = [self._pack_features(backbone, pack_trees(p, without_prompts=True)) for p in packs]
        terms_K22 = self._head_terms(
            torch.cat([feature_RX for feature_RX, _, _ in scored]), first_K
        )
        score_K2 = cap_scores(terms_K22.sum(2), self.config.score_cap)
        routings = [routing for _, layers, _ in scored for routing in layers]
        entropies = [torch.special.entr(r.weights.detach()).sum(1).mean() for r in routings]
        return Scores(
            perception_K=score_K2[:, 0],
            reasoning_K=score_K2[:, 1],
            terms_K22=terms_K22.detach(),
            balance_loss=torch.stack([r.balance_loss for r in routings]).mean(),
            router_entropy=torch.stack(entropies).mean(),
            load_E=torch.stack([r.load for r in routings]).mean(0),
            routing_weights=tuple(
                tuple(r.weights.detach() for r in layers) for _, layers, _ in scored
            ),
            part_lengths=tuple(n for _, _, lengths in scored for n in lengths),
        )

    def part_tokens(self, backbone: Backbone, parts: Parts) -> PartTokens:
        """Return what is read of a completion; cached, since teachers return every epoch."""
        if parts not in self._tokens:
            self._tokens[parts] = part_tokens(backbone, self.config, parts)
        return self._tokens[parts]

    def part_lengths(self, backbone: Backbone, completions: Iterable[Parts]) -> tuple[int, ...]:
        """Count the tokens of each part of some completions, before the cut."""
        return tuple(n for parts in completions for n in self.part_tokens(backbone, parts).lengths)

    def _pack_features(
        self, backbone: Backbone, pack: Pack
    ) -> tuple[Tensor, list[tk.Routing], tuple[int, ...]]:
        """Compute what the heads read of the branches, which alternate between the channels.

        Returns:
            features float32 [R, D (+ 2)], each layer's routing, tokens of each branch.
        """
        states = self.prompt_cache.states(backbone, pack.prompts)
        with self._attached(backbone, pack) as routings:
            hidden_FD = forward_branches(backbone.core, pack, states, attention=backbone.attention)
        feature_RX = hidden_FD[pack.last_R.to(hidden_FD.device)].float()
        if self.config.likelihood_features:
            likelihood_R2 = self._likelihood_features(backbone, pack, hidden_FD)
            feature_RX = torch.cat([feature_RX, likelihood_R2], 1)
        return feature_RX, routings, pack.branch_lengths

    def _head_terms(self, feature_RX: Tensor, first_K: Sequence[int]) -> Tensor:
        """Apply the heads: float32 [K, 2 channels, 2 terms (hidden state, likelihood)].

        Args:
            feature_RX: of all parts, a perception and a reasoning part of each completion in turn.
            first_K: number of the first completion of the same prompt.
        """
        feature_K2X = feature_RX.unflatten(0, (-1, 2))
        head_2X = torch.stack([self.perception_head, self.reasoning_head])
        if not self.config.likelihood_features:
            hidden_K2 = (feature_K2X * head_2X).sum(2)
            return torch.stack([hidden_K2, torch.zeros_like(hidden_K2)], 2)
        sizes = (feature_RX.shape[1] - _NUM_LIKELIHOOD_FEATURES, _NUM_LIKELIHOOD_FEATURES)
        hidden_K2D, likelihood_K22 = feature_K2X.split(sizes, 2)
        hidden_head_2D, likelihood_head_22 = head_2X.split(sizes, 1)
        relative_K22 = (
            likelihood_K22 - likelihood_K22[torch.tensor(first_K, device=feature_RX.device)]
        )
        return torch.stack(
            [
                (hidden_K2D * hidden_head_2D).sum(2),
                (relative_K22 * likelihood_head_22).sum(2),
            ],
            2,
        )

    def _likelihood_features(self, backbone: Backbone, pack: Pack, hidden_FD: Tensor) -> Tensor:
        """Compute the mean and minimum token log-prob [R, 2] of each part's body.

        The body excludes the sentinel and the opening tag: in a think that follows the prompt without
        its caption, `<think>` would be the least likely token, right or wrong.
        """
        device, num_opening = hidden_FD.device, num_opening_tokens(backbone, self.config)
        body, start = [], 0
        for branch, length in enumerate(pack.branch_lengths):
            # Branch tokens are end to end: after the opening tag, up to the sentinel, which is last.
            body.append(torch.arange(start + num_opening[branch % 2], start + length - 1))
            start += length
        branch_M = torch.arange(len(body)).repeat_interleave(torch.tensor([*map(len, body)]))
        branch_M, body_M = branch_M.to(device), torch.cat(body)
        logprob_M = tk.token_logprobs(
            hidden_FD[pack.predictor_N[body_M].to(device)],
            backbone.head_weight,
            pack.target_N[body_M].to(device),
        )
        zeros_R = logprob_M.new_zeros(pack.num_branches)
        count_R = zeros_R.index_add(0, branch_M, torch.ones_like(logprob_M))
        mean_R = zeros_R.index_add(0, branch_M, logprob_M) / count_R
        min_R = zeros_R.scatter_reduce(0, branch_M, logprob_M, "amin", include_self=False)
        return torch.stack([mean_R, min_R], 1)

    @contextmanager
    def _attached(self, backbone: Backbone, pack: Pack) -> Iterator[list[tk.Routing]]:
        """Attach the experts to the last layers' MLPs inside, and yield the list of their routings."""
        first = pack.layout.first_branch_token
        allowed_NE = self._allowed(pack).to(backbone.device)
        routings: list[tk.Routing] = []
        layers = family.decoder_layers(backbone.core)[self.first_layer :]
        handles = []
        for layer, expert in zip(layers, self.experts, strict=True):

            def add_experts(
                _module: Any, args: Any, output_1FD: Tensor, expert: Any = expert
            ) -> Tensor:
                delta_ND, routing = self._mix(expert, args[0][0, first:], allowed_NE)
                routings.append(routing)
                changed_1ND = output_1FD[:, first:] + delta_ND.to(output_1FD.dtype)
                return torch.cat([output_1FD[:, :first], changed_1ND], 1) if first else changed_1ND

            handles.append(layer.mlp.register_forward_hook(add_experts))
        try:
            yield routings
        finally:
            for handle in handles:
                handle.remove()

    def _mix(
        self, expert: ExpertLayer, x_ND: Tensor, allowed_NE: Tensor
    ) -> tuple[Tensor, tk.Routing]:
        if self.config.routing == "dense":
            ones_N1 = x_ND.new_ones(x_ND.shape[0], 1, dtype=torch.float32)
            routing = tk.Routing(ones_N1, ones_N1.new_ones(1), ones_N1.new_ones(()))
        else:
            logits_NE = x_ND.float() @ expert.router.T
            routing = tk.route_topk(logits_NE, self.config.top_k, allowed=allowed_NE)
        A, B = expert.A.to(x_ND.dtype), expert.B.to(x_ND.dtype)
        return tk.lora_experts(x_ND, A, B, routing.weights, scale=self.config.scale), routing

    def _allowed(self, pack: Pack) -> Tensor:
        """Return which experts each part token may use, bool [N, E]; even branches are perception."""
        num_experts = self.config.num_experts
        if self.config.routing != "grouped":
            return torch.ones(len(pack.branch_N), num_experts, dtype=torch.bool)
        is_reasoning_N1 = (pack.branch_N % 2 == 1)[:, None]
        is_reasoning_expert_E = torch.arange(num_experts) >= num_experts // 2
        return is_reasoning_N1 == is_reasoning_expert_E


def discriminator_for(
    backbone: Backbone, config: DiscriminatorConfig, *, seed: int
) -> Discriminator:
    """Build an untrained discriminator with a backbone's sizes, on the backbone's device.

    Args:
        seed: of the experts' initial weights.
    """
    text = backbone.core.config.text_config
    discriminator = Discriminator(
        config, num_layers=text.num_hidden_layers, hidden_size=text.hidden_size, seed=seed
    )
    return discriminator.to(backbone.device)


def save_discriminator(
    folder: Path, tensors: Mapping[str, Tensor], config: DiscriminatorConfig
) -> None:
    """Write the weights as safetensors, and config.json."""
    folder.mkdir(exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, folder / "discriminator.safetensors")
    except SafetensorError as error:
        raise system_error(error) from error
    write_json(folder / "config.json", dataclasses.asdict(config))
