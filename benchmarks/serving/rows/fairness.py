"""Does a client with a hundred streams keep a client with one from being served?"""

from __future__ import annotations

import subprocess

from benchmarks.serving import figures, h2load, wire
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import Stage

TABLE = "A client with one stream beside one with 100"
STREAMS = 100
MOST = 2.0  # times what it waits alone


def measure(stage: Stage) -> None:
    """Measure the single stream's waits alone and beside the others, in turn."""
    body = stage.body(stage.ours)
    url = f"http://127.0.0.1:{stage.ours.port}{stage.ours.form.path}"
    seconds = 2 * stage.setting.seconds
    waits: dict[str, list[float]] = {"alone": [], "beside 100": []}
    for order in stage.turns(list(waits)):
        for name in order:
            with stage.ours.turn():
                crowd = None
                if name != "alone":
                    command = ["h2load", "-t", "1", "-c", "1", "-m", str(STREAMS)]
                    command += ["-D", f"{round(1e3 * (seconds + 1))}ms", "-d", str(body)]
                    for header in h2load.GRPC_HEADERS:
                        command += ["-H", header]
                    crowd = subprocess.Popen(
                        [*command, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                with stage.ours.connected() as one:
                    # The crowd needs a moment to fill the queue.
                    wire.closed(one, [body.read_bytes()], 1, 0.5)
                    calls = wire.closed(one, [body.read_bytes()], 1, seconds - 0.5)
                if crowd is not None:
                    crowd.wait()
            failed = [call for call in calls if call.status != wire.OK]
            if failed:
                raise RuntimeError(f"{len(failed)} calls of the single stream failed")
            waits[name].append(figures.percentile([call.seconds for call in calls], 0.99))
    ratio = figures.ratios(waits["beside 100"], waits["alone"])
    for name, found in waits.items():
        last = name != "alone"
        stage.report.lines.append(
            Line(
                TABLE,
                str(stage.subject),
                name,
                "ours",
                {"p99 ms": f"{figures.spread([1e3 * one for one in found]):.1f}"}
                | ({"of alone": f"{ratio:.2f}"} if last else {}),
                aims=(
                    Aim(f"p99 at most {MOST} of alone ({ratio.median:.2f})", ratio.median <= MOST),
                )
                if last
                else (),
                windows={"p99": found},
            )
        )
