"""One-line mistakes in the Triton kernels and their wrappers."""

from tests.kernels.mutation import Mutation

KERNEL_MUTATIONS = [
    # --- _logprob_rows, _entropy_grad_rows
    Mutation(
        "logprob_triton.py",
        "temperature forgotten at the target",
        "target = tl.load(logits_ptr + token).to(tl.float32) * inv_temperature",
        "target = tl.load(logits_ptr + token).to(tl.float32)",
    ),
    Mutation(
        "logprob_triton.py",
        "temperature forgotten in the gradient's share",
        "share = tl.exp(z * inv_temperature - top)",
        "share = tl.exp(z - top)",
    ),
    Mutation(
        "logprob_triton.py",
        "running sum not rescaled when the maximum rises",
        "rest = rest * decay + tl.sum(share, axis=0)",
        "rest = rest + tl.sum(share, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "running entropy sum not shifted when the maximum rises",
        "weighted = decay * (weighted + (top - new_top) * rest) + tl.sum(part, axis=0)",
        "weighted = decay * weighted + tl.sum(part, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "maximum of the last block instead of the running one",
        "new_top = tl.maximum(top, tl.max(z, axis=0))",
        "new_top = tl.max(z, axis=0)",
    ),
    Mutation(
        "logprob_triton.py",
        "mask off by one column",
        'mask=columns < num_columns, other=float("-inf"))',
        'mask=columns < num_columns - 1, other=float("-inf"))',
    ),
    Mutation(
        "logprob_triton.py",
        "masked columns count as logit 0",
        'mask=columns < num_columns, other=float("-inf"))',
        "mask=columns < num_columns, other=0.0)",
    ),
    Mutation(
        "logprob_triton.py",
        "target counted twice",
        "share = tl.where(columns == token, 0.0, tl.exp(z - new_top))",
        "share = tl.exp(z - new_top)",
    ),
    Mutation(
        "logprob_triton.py",
        "1 - p by subtraction (cancels for confident tokens)",
        "grad = tl.where(columns == token, rest, -share) / total * grad_scale",
        "grad = (tl.where(columns == token, 1.0, 0.0) - share / total) * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "sign of the gradient",
        "grad = tl.where(columns == token, rest, -share) / total * grad_scale",
        "grad = tl.where(columns == token, rest, share) / total * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "target's own term missing from the entropy",
        "weighted += tl.where(own == 0.0, 0.0, own * (target - top))",
        "weighted += 0.0",
    ),
    Mutation(
        "logprob_triton.py",
        "0 * -inf not guarded in the entropy",
        "part = tl.where(share == 0.0, 0.0, share * (z - new_top))",
        "part = share * (z - new_top)",
    ),
    Mutation(
        "logprob_triton.py",
        "maximum starts at -inf",
        "top = -1e38",
        'top = float("-inf")',
    ),
    Mutation(
        "logprob_triton.py",
        "entropy missing from its own gradient",
        "grad = tl.where(share == 0.0, 0.0, -share * (logprob + entropy)) * grad_scale",
        "grad = tl.where(share == 0.0, 0.0, -share * logprob) * grad_scale",
    ),
    Mutation(
        "logprob_triton.py",
        "second block of columns of the entropy's gradient skipped",
        "columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)",
        "columns = tl.arange(0, BLOCK)",
    ),
    Mutation(
        "logprob_triton.py",
        "gradient not unscaled after the product",
        "torch.mul(product_CD, inv_temperature / _scale(weight), out=product_CD)",
        "torch.mul(product_CD, inv_temperature, out=product_CD)",
    ),
    Mutation(
        "logprob_triton.py",
        "float16 gradients of the logits not scaled (underflow)",
        "return FP16_SCALE if weight.dtype == torch.float16 else 1.0",
        "return 1.0",
    ),
    Mutation(
        "logprob_triton.py",
        "chunk writes over the first chunk's results",
        "            result.logprob[rows],",
        "            result.logprob,",
    ),
    # --- _route, _route_backward
    Mutation(
        "routing_triton.py",
        "chosen expert not excluded from the next round",
        'rank = tl.where(is_best, float("-inf"), rank)',
        "rank = rank",
    ),
    Mutation(
        "routing_triton.py",
        "groups ignored",
        "        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)\n\n    # An",
        "        may = may\n\n    # An",
    ),
    Mutation(
        "routing_triton.py",
        "groups ignored in the backward",
        "        may = may & (tl.load(allowed_ptr, mask=is_real, other=0) != 0)\n    offset",
        "        may = may\n    offset",
    ),
    Mutation(
        "routing_triton.py",
        "forbidden experts chosen when the group is exhausted",
        "& exists[:, None]",
        "& (exists[:, None] | True)",
    ),
    Mutation(
        "routing_triton.py",
        "allowed -inf ranks with the forbidden",
        'rank = tl.where(may, tl.where(z > -3.0e38, z, -3.0e38), float("-inf"))',
        'rank = tl.where(may, z, float("-inf"))',
    ),
    Mutation(
        "routing_triton.py",
        "NaN not seen",
        "is_bad = (may & (z != z)) | (weights != weights)",
        "is_bad = weights != weights",
    ),
    Mutation(
        "routing_triton.py",
        "softmax over all allowed instead of the chosen",
        "weights = _softmax_over(z, chosen)",
        "weights = _softmax_over(z, may)",
    ),
    Mutation(
        "routing_triton.py",
        "balance loss from the weights instead of the shares",
        "tl.sum(_softmax_over(z, may), axis=0)",
        "tl.sum(weights, axis=0)",
    ),
    Mutation(
        "routing_triton.py",
        "load counts every assignment as one token",
        "return tl.sum(one / count[:, None], axis=0)",
        "return tl.sum(one, axis=0)",
    ),
    Mutation(
        "routing_triton.py",
        "Jacobian's second term missing",
        "grad = weights * (grad_weights - tl.sum(weights * grad_weights, axis=1)[:, None])",
        "grad = weights * grad_weights",
    ),
    Mutation(
        "routing_triton.py",
        "balance loss gives no gradient",
        "grad += prob * (grad_prob - tl.sum(prob * grad_prob, axis=1)[:, None])",
        "grad += 0.0",
    ),
    Mutation(
        "routing_triton.py",
        "upstream gradient read without its strides",
        "_offsets(rows, columns, grad_stride_t, grad_stride_e)",
        "_offsets(rows, columns, NUM_EXPERTS, 1)",
    ),
    # --- _scale_ranks, _scale_ranks_backward
    Mutation(
        "lora_triton.py",
        "expert's columns misplaced",
        "columns = expert * RANK + tl.arange(0, PADDED)",
        "columns = tl.arange(0, PADDED)",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the forward",
        "out = low * (weight * scale)[:, None]",
        "out = low * weight[:, None]",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the gradient of x",
        "grad_low = grad * (weight * scale)[:, None]",
        "grad_low = grad * weight[:, None]",
    ),
    Mutation(
        "lora_triton.py",
        "scale forgotten in the gradient of the weights",
        "grad_weight = tl.sum(grad * low, axis=1) * scale",
        "grad_weight = tl.sum(grad * low, axis=1)",
    ),
    Mutation(
        "lora_triton.py",
        "gradient of the weights from the scaled gradient",
        "grad_weight = tl.sum(grad * low, axis=1) * scale",
        "grad_weight = tl.sum(grad_low * low, axis=1) * scale",
    ),
    Mutation(
        "lora_triton.py",
        "expert's gradient stored at the wrong place",
        "grad_weights_ptr += rows.to(tl.int64) * tl.num_programs(1) + expert",
        "grad_weights_ptr += rows.to(tl.int64) * tl.num_programs(1)",
    ),
]
