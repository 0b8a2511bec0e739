"""What all sections of a recipe share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


def without_secrets(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("an address begins with http:// or https://")
    if re.match(r"https?://[^/]*@", url) or re.search(r"[?&][^=]*(key|token|secret)[^=]*=", url, re.IGNORECASE):
        raise ValueError("an address must hold no key: name an environment variable in api_key_env")
    return url


Url = Annotated[str, AfterValidator(without_secrets)]
