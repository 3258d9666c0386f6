"""What all parts of the schedule file share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Part(BaseModel):
    """One part of the file: no unknown fields, no conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
