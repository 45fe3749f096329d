"""One-line mistakes in the torch path and in what both paths share."""

from tests.kernels.mutation import Mutation

TORCH_MUTATIONS = [
    # --- the torch path
    Mutation(
        "logprob_torch.py",
        "running sum not rescaled when the maximum rises",
        "self.rest_T = self.rest_T * decay_T + share_TC.sum(1)",
        "self.rest_T = self.rest_T + share_TC.sum(1)",
    ),
    Mutation(
        "logprob_torch.py",
        "running mean row not rescaled when the maximum rises",
        "self.mean_TD.mul_(decay_T[:, None])",
        "self.mean_TD.mul_(1.0)",
    ),
    Mutation(
        "logprob_torch.py",
        "target taken from the wrong chunk",
        "is_here_T = (local_T >= 0) & (local_T < logit_TC.shape[1])",
        "is_here_T = local_T < logit_TC.shape[1]",
    ),
    Mutation(
        "logprob_torch.py",
        "target counted twice",
        "share_TC.scatter_(1, local_T1, share_T1.masked_fill(is_here_T[:, None], 0.0))",
        "pass",
    ),
    Mutation(
        "logprob_torch.py",
        "entropy sum not shifted when the maximum rises",
        "shifted_T = self.weighted_T + rise_T * (self.own_T + self.rest_T)",
        "shifted_T = self.weighted_T",
    ),
    Mutation(
        "logprob_torch.py",
        "entropy missing from its own gradient",
        "logprob_TC.clamp_(min=-128.0).add_(entropy[:, None]).mul_(share_TC)",
        "logprob_TC.clamp_(min=-128.0).mul_(share_TC)",
    ),
    Mutation(
        "logprob_torch.py",
        "one chunk: 1 - p by subtraction (cancels for confident tokens)",
        "share_TV.scatter_(1, ids[:, None], -share_TV.sum(1, keepdim=True))",
        "share_TV.scatter_(1, ids[:, None], target_T1.exp() - 1)",
    ),
    Mutation(
        "logprob_torch.py",
        "one chunk: 0 * -inf not guarded in the entropy",
        "entropy_T = -logprob_TV.clamp_(min=-128.0).mul_(share_TV).sum(1)",
        "entropy_T = -logprob_TV.mul_(share_TV).sum(1)",
    ),
    Mutation(
        "routing.py",
        "allowed -inf ranks with the forbidden",
        "rank_TE = logits_TE.clamp(min=_LOWEST)",
        "rank_TE = logits_TE.clone()",
    ),
    Mutation(
        "routing.py",
        "forbidden experts chosen when the group is exhausted",
        "chosen_TE &= allowed",
        "pass",
    ),
    Mutation(
        "routing.py",
        "balance loss gives no gradient",
        "return grad_TE.add_(prob_TE * (grad_prob - (prob_TE * grad_prob).sum(1, keepdim=True)))",
        "return grad_TE",
    ),
    Mutation(
        "lora.py",
        "scale forgotten in the gradient of the weights",
        "grad_weights_TE.mul_(scale)",
        "grad_weights_TE",
    ),
    # --- shared by both paths
    Mutation(
        "logprob.py",
        "ignored tokens keep their log-prob",
        "logprob_T = logprob_T.masked_fill(is_ignored_T, 0)",
        "pass",
    ),
    Mutation(
        "logprob.py",
        "gradient of the log-prob lost where the entropy has one, too",
        "grad_TD = entropy_TD if grad_TD is None else entropy_TD.add_(grad_TD)",
        "grad_TD = entropy_TD",
    ),
    Mutation(
        "routing.py",
        "balance loss divides by all experts, not by an even router's share",
        "grad_prob_E = sent_E / (even_E + (even_E == 0)) / num_tokens",
        "grad_prob_E = sent_E * len(sent_E) / num_tokens / num_tokens",
    ),
    Mutation(
        "lora.py",
        "gradient of B from the unscaled ranks",
        "scaled_TR = implementation.scale_ranks(low_TR, weights, ctx.scale)",
        "scaled_TR = low_TR",
    ),
    Mutation(
        "lora.py",
        "B's experts and ranks interchanged",
        "B_RN = B.to(dtype).transpose(1, 2).reshape(num_experts * rank, -1)",
        "B_RN = B.to(dtype).permute(2, 0, 1).reshape(num_experts * rank, -1)",
    ),
]
