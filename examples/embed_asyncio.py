"""A video service inside an asyncio program: one engine, requests that overlap, frames streamed.

    python examples/embed_asyncio.py

Five clients ask for a video each, faster than one is made; the engine has two slots, so two videos
are computed together and three requests wait. Every client gets frames as soon as they are final.
One of them hangs up in the middle, and its slot goes to the next request at the next frame.
"""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from videoar import Cancelled, Engine, VideoAR

PROMPTS = (
    "a red 7 moving right slowly",
    "a green 3 moving up",
    "a blue 0 moving left",
    "a yellow 5 standing still",
    "a cyan 8 moving down slowly",
)
SLOTS = 2
IMPATIENT = 1  # the client who hangs up,
PATIENCE = 2  # after so many pieces of the video


@dataclass(kw_only=True)
class Client:
    """One who wants a video, and what came of it.

    Attributes:
        name: for the log; also the seed.
        prompt: what to show.
        patience: hangs up after so many pieces; None: stays.
        frames: what arrived, uint8 `[n,H,W,3]` each.
        asked, first, last: when, in seconds of the monotonic clock.
        cancelled: hung up.
    """

    name: int
    prompt: str
    patience: int | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    asked: float = 0.0
    first: float = 0.0
    last: float = 0.0
    cancelled: bool = False

    def receive(self, frames: np.ndarray) -> bool:
        """Take a piece of the video; a real service would send it on. False: hung up."""
        self.first = self.first or time.monotonic()
        self.frames.append(frames)
        return len(self.frames) != self.patience


async def ask(requests: asyncio.Queue[Client | None]) -> None:
    """The producer: clients come in, one after the other; None ends the service."""
    for name, prompt in enumerate(PROMPTS):
        await requests.put(
            Client(name=name, prompt=prompt, patience=PATIENCE if name == IMPATIENT else None)
        )
        await asyncio.sleep(0.02)
    await requests.put(None)


async def serve(engine: Engine, requests: asyncio.Queue[Client | None]) -> list[Client]:
    """The consumer: a task for each client, until nobody comes any more."""
    tasks = []
    while (client := await requests.get()) is not None:
        tasks.append(asyncio.create_task(answer(engine, client)))
    return await asyncio.gather(*tasks)


async def answer(engine: Engine, client: Client) -> Client:
    """Stream one video to one client."""
    client.asked = time.monotonic()
    handle = engine.submit(client.prompt, seed=client.name)  # returns at once
    log(client, f"asks for {client.prompt!r}")
    try:
        async for frames in handle:
            if not client.receive(frames):
                handle.cancel()  # the loop ends with Cancelled
            log(client, f"gets {len(frames)} frames, {handle.progress.fraction:.0%} done")
    except Cancelled:
        client.cancelled = True
    client.last = time.monotonic()
    outcome = "hung up" if client.cancelled else "is served"
    log(client, f"{outcome}; first frame after {client.first - client.asked:.2f} s")
    return client


def log(client: Client, event: str) -> None:
    clock = datetime.now().strftime("%H:%M:%S.%f")[:-3]
    print(f"{clock}  client {client.name} {event}", flush=True)


async def run(engine: Engine) -> list[Client]:
    requests: asyncio.Queue[Client | None] = asyncio.Queue()
    _, clients = await asyncio.gather(ask(requests), serve(engine, requests))
    return clients


def main() -> list[Client]:
    model = VideoAR.from_pretrained("digits")
    with Engine(model, slots=SLOTS) as engine:  # all memory is created here
        return asyncio.run(run(engine))


if __name__ == "__main__":
    main()
