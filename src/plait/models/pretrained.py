"""What every plait model shares: loading, saving, initialisation and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from plait.mixers.base import Mixer
from plait.models.configuration import LayerSpec, PlaitConfig
from plait.nn import GatedRMSNorm, RMSNorm


class SharedParameters(nn.Module):
    """Parameters that the model holds once for all layers of one type, such as HGRN's lower bounds."""

    def __init__(self, config: PlaitConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.dims, self.spec = config.dims, spec
        for name, value in self._initial().items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self) -> dict[str, Tensor]:
        """The parameters by name. Call the module for them: a tool that keeps weights elsewhere brings them then."""
        return dict(self.named_parameters())

    def _initial(self) -> dict[str, Tensor]:
        return self.spec.type.shared_parameters(self.dims, self.spec.options)

    def init_parameters(self) -> None:
        """Back to the initial values."""
        for name, value in self._initial().items():
            init.copy_(getattr(self, name), value)


class PlaitPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: PlaitConfig
    config_class = PlaitConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, self._embedding_spread())
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.normal_(module.weight, 0.0, self._spread(module))
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, (RMSNorm, GatedRMSNorm)):
            init.ones_(module.weight)
        elif isinstance(module, SharedParameters):
            module.init_parameters()
        elif isinstance(module, Mixer):
            own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            loaded = {n: p.detach().clone() for n, p in own.items() if getattr(p, "_is_hf_initialized", False)}
            module.init_parameters(std)
            with torch.no_grad():  # a mixer does not know which of its tensors came from a file
                for name, value in loaded.items():
                    own[name].copy_(value)

    def _embedding_spread(self) -> float:
        config = self.config
        if config.embedding_range is not None:
            return config.embedding_range
        if config.initialization == "fan_in":
            return config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0
        return config.initializer_range

    def _spread(self, module: nn.Linear | nn.Conv1d) -> float:
        """Standard deviation of a module's initial weights (``PlaitConfig.initialization``)."""
        config = self.config
        if isinstance(module, nn.Conv1d) or module is self.get_output_embeddings():
            return config.initializer_range
        if config.initialization == "fan_in":
            return module.in_features**-0.5
        if config.initialization == "depth_scaled" and module in self._residual_projections:
            return config.initializer_range * (2 * len(config.layers())) ** -0.5
        return config.initializer_range

    @cached_property
    def _residual_projections(self) -> set[nn.Module]:
        return {module for name, module in self.named_modules() if name.endswith((".attn.o_proj", ".mlp.down_proj"))}

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        if gradient_checkpointing_func is checkpoint:
            gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the bridge module in a saved folder already says where the class is."""
