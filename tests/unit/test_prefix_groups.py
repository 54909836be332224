"""Groups of decoding rows that share a prefix."""

from __future__ import annotations

from array import array

from nbsgl.engine.batch import SharedPrefix
from nbsgl.engine.kv_pool import KVPool
from nbsgl.engine.prefix_groups import PrefixGroups, group_by_prefix
from nbsgl.engine.radix_cache import RadixCache
from nbsgl.engine.request import Sequence


def cached(tree: RadixCache, pool: KVPool, tokens: list[int], seq_id: int) -> Sequence:
    """A sequence whose tokens are all in the tree."""
    match = tree.match_prefix(tokens)
    slots = match.slots + (pool.alloc(len(tokens) - match.length) or array("i"))
    done = tree.insert(match.node, tokens, slots, match.length, len(tokens))
    tree.lock(done.node)
    return Sequence(id=seq_id, arrival=seq_id, tokens=tokens, node=done.node, cached_len=len(tokens))


def few_shot(num_heads: int, per_head: int, length: int = 200) -> list[Sequence]:
    """Sequences over `num_heads` long prefixes, in turns."""
    pool = KVPool(20_000, 1, 256)
    tree = RadixCache(pool)
    prompts = [([h] * length + [1000 + i, i], h) for i in range(per_head) for h in range(num_heads)]
    return [cached(tree, pool, tokens, i) for i, (tokens, _) in enumerate(prompts)]


def test_rows_of_one_prefix_lie_together_and_share_its_length() -> None:
    seqs = few_shot(4, 20)
    order, groups = group_by_prefix(seqs)
    assert sorted(order) == list(range(80))
    assert [(g.begin, g.end, g.length) for g in groups] == [(i * 20, i * 20 + 20, 200) for i in range(4)]
    for group in groups:
        assert len({seqs[i].tokens[0] for i in order[group.begin : group.end]}) == 1


def test_the_prefix_that_saves_most_is_taken_and_rows_without_one_come_last() -> None:
    pool = KVPool(20_000, 1, 256)
    tree = RadixCache(pool)
    root = [7] * 1000
    deep = root + [8] * 150
    tokens = (
        [deep + [100 + i] for i in range(10)] + [root + [200 + i] for i in range(60)] + [[300 + i] for i in range(5)]
    )
    seqs = [cached(tree, pool, t, i) for i, t in enumerate(tokens)]
    order, groups = group_by_prefix(seqs)
    assert groups == [SharedPrefix(0, 70, 1000)]  # 69 x 1000 and not 9 x 1150
    assert order[70:] == list(range(70, 75))


def test_short_prefixes_and_few_rows_make_no_group() -> None:
    assert group_by_prefix(few_shot(2, 40, length=100)) == ([], [])
    assert group_by_prefix(few_shot(40, 2)) == ([], [])


def test_groups_are_found_anew_only_when_rows_change() -> None:
    groups = PrefixGroups()
    seqs = few_shot(4, 60)
    assert groups.of(seqs[:60]) == ([], [])  # too few to gain
    order, found = groups.of(seqs)
    assert groups.of(list(seqs))[1] is found
    seqs[3].epoch += 1
    again = groups.of(seqs)
    assert again[1] is not found
    assert again == (order, found)
