import pytest

from nbsgl.engine.kv_pool import KVPool


def test_pages_are_neighbouring_slots() -> None:
    pool = KVPool(num_slots=18, page_size=4)
    assert pool.num_slots == 16
    assert list(pool.alloc(2) or ()) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert pool.num_free == 8


def test_alloc_of_too_many_grants_nothing() -> None:
    pool = KVPool(num_slots=4)
    assert pool.alloc(5) is None
    assert pool.num_free == 4


def test_freed_pages_are_granted_again() -> None:
    pool = KVPool(num_slots=8, page_size=4)
    slots = pool.alloc(2)
    assert slots is not None
    pool.free(slots[4:])
    assert list(pool.alloc(1) or ()) == [4, 5, 6, 7]
    assert pool.alloc(1) is None


def test_double_free_is_counted_and_harmless() -> None:
    pool = KVPool(num_slots=4)
    slots = pool.alloc(1)
    assert slots is not None
    assert slots.tolist() == [0]
    pool.free(slots)
    pool.free(slots)
    assert (pool.double_frees, pool.num_free) == (1, 4)


def test_quarantined_slots_are_never_granted() -> None:
    pool = KVPool(num_slots=4)
    held = pool.alloc(1)
    assert held is not None
    assert held.tolist() == [0]
    assert pool.quarantine([0, 3]) == 2
    assert (pool.capacity, pool.num_free, pool.quarantined_slots()) == (2, 2, [0, 3])
    assert sorted(pool.alloc(2) or []) == [1, 2]
    assert pool.quarantine([0]) == 0


def test_rows_are_granted_once() -> None:
    pool = KVPool(num_slots=4, num_rows=2)
    assert (pool.alloc_row(), pool.alloc_row(), pool.alloc_row()) == (0, 1, None)
    pool.free_row(1)
    assert pool.alloc_row() == 1


def test_a_pool_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="no pool of 3 slots in pages of 4"):
        KVPool(num_slots=3, page_size=4)
