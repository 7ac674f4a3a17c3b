"""Tasks report progress to the bars of their process, and to nothing where there are none."""

import threading

from tasks.ingest.progress import IngestProgress


def test_report_without_bars_does_nothing() -> None:
    progress = IngestProgress()
    progress.expect("files", 3)
    progress.advance("files", 1)
    with progress.show() as bars:
        assert bars.tasks == []


def test_reports_of_threads_are_counted_on_the_bar_of_their_unit() -> None:
    progress = IngestProgress()
    with progress.show() as bars:
        progress.expect("rows read", 100)
        progress.expect("files", 3)
        threads = [
            threading.Thread(target=progress.advance, args=("rows read", 5)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.advance("files", 1)
        progress.advance("months merged", 1)
        counts = [(bar.description, bar.completed, bar.total) for bar in bars.tasks]
    assert counts == [("rows read", 20, 100), ("files", 1, 3)]


def test_bars_are_gone_after_the_block_that_shows_them() -> None:
    progress = IngestProgress()
    with progress.show() as bars:
        progress.expect("files", 3)
    progress.advance("files", 1)
    assert bars.tasks[0].completed == 0
