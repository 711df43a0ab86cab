"""Compiles the optional CPU kernels when plait is built or installed; without a C compiler plait works without them."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        path = Path(self.root, "src/plait/ops/native/build.py")
        spec = importlib.util.spec_from_file_location("plait_native_build", path)
        assert spec is not None
        assert spec.loader is not None
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        reason = native.build()
        if reason:
            self.app.display_warning(f"plait is built without its CPU kernels: {reason}.")
            return
        build_data["artifacts"].append("src/plait/ops/native/kernels-*.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
