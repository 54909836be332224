"""JSON-Schema-Test-Suite by engine: `python -m tests.bench.schema_suite [--why ENGINE] [--only GROUP]`.

One line a group: schemas right / refused / wrong for ours, llguidance alone and xgrammar alone;
one JSON line at the end.  Where a schema refers to other documents the others are also given it without them; their
better result counts.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

from tests.unit import schema_judge as judge

ENGINES = {
    "ours": judge.ours,
    "rules": judge.by_rules,
    "llguidance": judge.llguidance_alone,
    "xgrammar": judge.xgrammar_alone,
}
OURS = ("ours", "rules")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--why", help="say why each schema that this engine does not have right")
    parser.add_argument("--only", help="groups with this in their name")
    parser.add_argument("--engines", default="ours,llguidance,xgrammar")
    options = parser.parse_args()
    engines = {name: ENGINES[name] for name in options.engines.split(",")}
    counts: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for (draft, group, description, schema, tests), (*_, plain, _) in zip(judge.suite(), judge.suite(is_bundled=False)):
        if options.only and options.only not in group:
            continue
        row = counts.setdefault((draft, group), {name: Counter() for name in engines})
        for name, engine in engines.items():
            verdict, why = judge.judge(engine, schema, tests, group)
            if name not in OURS and plain != schema:
                verdict, why = min((verdict, why), judge.judge(engine, plain, tests, group), key=judge.rank)
            row[name][verdict] += 1
            if options.why == name and verdict != judge.RIGHT:
                print(f"{draft} {group}: {description}: {verdict}: {why[:200]}\n    {json.dumps(schema)[:300]}")
    total = {name: Counter[str]() for name in engines}
    for (draft, group), row in counts.items():
        best = max((row[name][judge.RIGHT] for name in engines if name not in OURS), default=0)
        mark = "  <" if row.get("ours", Counter())[judge.RIGHT] < best else ""
        print(f"{draft:14}{group:44}" + "".join(f"{_three(row[name]):>14}" for name in engines) + mark)
        for name in engines:
            total[name].update(row[name])
    print(f"{'':58}" + "".join(f"{name:>14}" for name in engines))
    print(json.dumps({name: dict(count) for name, count in total.items()}))


def _three(count: Counter[str]) -> str:
    return "/".join(str(count[verdict]) for verdict in (judge.RIGHT, judge.REFUSED, judge.WRONG))


if __name__ == "__main__":
    main()
