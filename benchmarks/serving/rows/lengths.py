"""What does batching texts by their lengths bring, and what does it cost the longest of them?

Texts of 4 to 256 tokens, most of them short, against the bare server, which takes them as they
come and pads each batch to its longest.
"""

from __future__ import annotations

import numpy as np

from benchmarks.serving import figures, forms, h2load, wire
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import Stage

TABLE = "Texts of 4 to 256 tokens"
SHORTEST, LONGEST = 4, 256
TEXTS, EVERY = 400, 40  # every so-manieth is of the longest
IN_FLIGHT, CONNECTIONS = 32, 4
LEAST_GAIN, MOST_WAIT = 1.5, 2.0
SEED = 6


def drawn(count: int, seed: int = SEED) -> list[int]:
    """Return lengths in tokens: log-normal about 22, and every fortieth of the longest."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(np.log(22), 0.9, count)).round()
    lengths = lengths.clip(SHORTEST, LONGEST).astype(int)
    lengths[::EVERY] = LONGEST
    return [int(length) for length in lengths]


def measure(stage: Stage) -> None:
    """Ask ours and the bare server in turn."""
    lengths = drawn(TEXTS)
    texts = [stage.subject.text(length, seed) for seed, length in enumerate(lengths)]
    bodies = [forms.CONTRACT.body(stage.subject, [text.encode()]) for text in texts]
    longest = {body for body, length in zip(bodies, lengths, strict=True) if length == LONGEST}
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    waits: dict[str, list[float]] = {"ours": [], "bare": []}
    for order in stage.turns(list(rates)):
        for name in order:
            server = stage.servers[name]
            with server.turn(), server.connected(CONNECTIONS) as connections:
                calls = wire.closed(connections, bodies, IN_FLIGHT, 2 * stage.setting.seconds)
            failed = [call for call in calls if call.status != wire.OK]
            if failed:
                raise RuntimeError(f"{name} answered {len(failed)} texts with an error")
            rates[name].append(h2load.steady_rate(np.array([call.ended for call in calls])))
            waits[name] += [call.seconds for call in calls if call.body in longest]
    gain = figures.ratios(rates["ours"], rates["bare"])
    p99 = {name: figures.percentile(found, 0.99) for name, found in waits.items()}
    wait = p99["ours"] / p99["bare"]
    aims = (
        Aim(
            f">= {LEAST_GAIN} times a padded first-in-first-out batcher ({gain.median:.2f})",
            gain.median >= LEAST_GAIN,
        ),
        Aim(f"the longest text's p99 within {MOST_WAIT} of its ({wait:.2f})", wait <= MOST_WAIT),
    )
    for name, found in rates.items():
        stage.report.lines.append(
            Line(
                TABLE,
                str(stage.subject),
                f"{IN_FLIGHT} in flight",
                name,
                {
                    "texts per second": f"{figures.spread(found):.0f}",
                    "of bare": f"{figures.ratios(found, rates['bare']):.2f}",
                    "longest text's p99 ms": f"{1e3 * p99[name]:.0f}",
                },
                aims=aims if name == "ours" else (),
                windows={"rates": found, "longest": waits[name]},
            )
        )
