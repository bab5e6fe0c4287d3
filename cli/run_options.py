"""Options of a job over units: what it reads and writes, how it runs and when it stops.

Each is a type that a command's parameter is annotated with, so that the commands show one text for one thing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# The groups that help shows options in.
IN_AND_OUT = "Input and output"
KEPT = "What is kept"
RUN = "How it runs"
STOPS = "When it stops"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(show_default=False, help="Paths, globs, folders or URLs of them; FORMAT:PATH names the format."),
]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Output directory, or a URL such as s3://bucket/prefix; an unfinished one of the same run is gone on with.",
        rich_help_panel=IN_AND_OUT,
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where to work on this machine's disk for an output in an object store.",
        rich_help_panel=IN_AND_OUT,
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        show_default="plain",
        help="How LLaVA conversations are written: plain, vicuna, chatml, qwen2, llama3, gemma, or a YAML file of yours.",
        rich_help_panel=IN_AND_OUT,
    ),
]
ValFraction = Annotated[
    float | None,
    typer.Option(show_default="0.0", help="Share of documents held out, by content hash.", rich_help_panel=KEPT),
]
BatchSize = Annotated[
    int | None, typer.Option(show_default="16", help="Pictures in each call of the encoder.", rich_help_panel=RUN)
]
UnitSize = Annotated[
    str | None, typer.Option(show_default="64MiB", help="Input that one work unit covers, e.g. 64MiB.", rich_help_panel=RUN)
]
ShardTokens = Annotated[
    str | None,
    typer.Option(show_default="256Mi", help="Tokens after which a shard is closed, e.g. 256Mi.", rich_help_panel=RUN),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes; default one a core. 0 works in this one, for debugging.", rich_help_panel=RUN)
]
Device = Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)]
Precision = Annotated[
    str | None,
    typer.Option(
        show_default="fp32", help="Of the image tokenizer's network: fp32, tf32 or fp16 (fast modes).", rich_help_panel=RUN
    ),
]
Acceleration = Annotated[
    str | None,
    typer.Option(
        show_default="none",
        help="none, compile (torch.compile) or graphs (CUDA graphs); what it rounds to is measured like a precision.",
        rich_help_panel=RUN,
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        show_default="0.98",
        help="Share of fp32's codes that a fast mode must keep on this input's pictures; else it is refused.",
        rich_help_panel=RUN,
    ),
]
Encoders = Annotated[
    str | None,
    typer.Option(
        show_default="auto",
        help="in-worker: each worker loads the image tokenizer; process: encoder processes encode for all workers; "
        "auto: a process for each GPU, in the workers on a CPU.",
        rich_help_panel=RUN,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(show_default="local", help="local: processes of this machine; ray: of a Ray cluster.", rich_help_panel=RUN),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Of a running Ray cluster, e.g. auto; without it one is started here.", rich_help_panel=RUN),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        show_default=False,
        help="GPUs (1, or a fraction) that a worker on Ray asks for, to encode by itself; without it encoder processes do.",
        rich_help_panel=RUN,
    ),
]
EncoderProcesses = Annotated[
    int | None, typer.Option(show_default="1", help="Encoder processes on each device.", rich_help_panel=RUN)
]
QueueDepth = Annotated[
    int | None,
    typer.Option(show_default="2", help="Batches that a worker may have under way at an encoder process.", rich_help_panel=RUN),
]
DedupMemory = Annotated[
    str | None,
    typer.Option(show_default="1GiB", help="Memory for grouping; what does not fit goes to files.", rich_help_panel=RUN),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first reject.", rich_help_panel=STOPS)]
MaxRejectRatio = Annotated[
    float | None,
    typer.Option(show_default="0.5", help="Stop where more than this share is rejected.", rich_help_panel=STOPS),
]
MaxConsecutiveRejects = Annotated[
    int | None, typer.Option(show_default="1000", help="Stop after so many rejects in a row.", rich_help_panel=STOPS)
]
ShardIndex = Annotated[
    int | None,
    typer.Option(help="Do only a part of the units, counted from 0; then `tokkit finish` does the rest.", rich_help_panel=RUN),
]
ShardCount = Annotated[int | None, typer.Option(help="Parts that the units are dealt out to.", rich_help_panel=RUN)]
LeaseSeconds = Annotated[
    float | None,
    typer.Option(
        show_default="60.0",
        help="Without a sign for so long, a process is dead to others on the same --out.",
        rich_help_panel=RUN,
    ),
]
StallSeconds = Annotated[
    float | None,
    typer.Option(
        show_default="300.0", help="Without progress for so long, a worker is killed and replaced.", rich_help_panel=RUN
    ),
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Go on with an output that was begun with other versions or another device; how far both agree is measured.",
        rich_help_panel=RUN,
    ),
]
