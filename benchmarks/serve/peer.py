"""What one writes in an afternoon: a transformers pipeline behind FastAPI, each request computed by itself.

python -m benchmarks.serve.peer DIRECTORY PORT        (the key: TUTTI_API_KEY)
"""

from __future__ import annotations

import hmac
import os
import sys
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from transformers import pipeline

#: Where the key is.
BEARER = HTTPBearer()


class Asked(BaseModel):
    """As Tutti's `/v1/classify`."""

    input: str


def main() -> None:
    directory, port = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    key = os.environ["TUTTI_API_KEY"]
    classify = pipeline("text-classification", model=directory, top_k=5, device="cpu")
    app = FastAPI()

    def known(given: Annotated[HTTPAuthorizationCredentials, Depends(BEARER)]) -> None:
        if not hmac.compare_digest(given.credentials, key):
            raise HTTPException(401)

    @app.post("/v1/classify", dependencies=[Depends(known)])
    def classified(asked: Asked) -> dict[str, Any]:
        return {"data": classify(asked.input)}

    print("ready", flush=True)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
