"""`tutti serve`: a model as a service that OpenAI's clients can talk to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutti.cli.output import find_run
from tutti.core.address import is_url


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run, what `tutti compress` wrote, a Hugging Face directory, what `tutti deploy` released to, or "
            "the URL of a service elsewhere that speaks as OpenAI's does.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, for example keys=keys.json limits.texts=2."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who may ask, how much, what is hidden, refused, written down."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines can only come where it says so.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; the run's name by default.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Texts that are written at the same time.")] = 8,
    context: Annotated[
        int | None,
        typer.Option(min=16, help="Tokens of a prompt with its answer; at most what the model can see."),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests that may wait (64), or texts of a model that does not write (1024); more are told to come "
            "again.",
        ),
    ] = None,
    weights: Annotated[
        Literal["auto", "as-they-are", "int8", "bf16"],
        typer.Option(
            help="How they are computed with. auto: whole numbers of 8 bits on a CPU, bf16 on a GPU."
        ),
    ] = "auto",
    engine: Annotated[
        Literal["auto", "native", "onnx"],
        typer.Option(
            help="What computes a model that does not write: torch or onnxruntime. auto: what is faster here, which is "
            "measured at the start."
        ),
    ] = "auto",
    documents: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Answer questions from the txt, md and jsonl files there."),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Search documents by vectors of this model, too, beside words (BM25)."
        ),
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option(
            metavar="N[:M]",
            help="Compute in so many processes behind a gateway, which starts again those that die; N:M by load. "
            "Releases are always served so (1).",
        ),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen for other machines without TLS.")
    ] = False,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="A page to try the model with, at /try; by default where only this machine can come.",
        ),
    ] = None,
) -> None:
    """Answer programs over HTTP: chat and completions of a model that writes, labels, entities, vectors, answers or
    items of one that does not."""
    from tutti import serving

    serving.serve(
        model if is_url(model) else find_run(model),
        host=host,
        port=port,
        name=name,
        slots=slots,
        context=context,
        queue=queue,
        weights=weights,
        engine=engine,
        documents=documents,
        embedder=None if embedder is None else find_run(embedder),
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        insecure=insecure,
        page=page,
        settings=settings,
        overrides=overrides or (),
        processes=processes,
    )
