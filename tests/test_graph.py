"""The graph: who waits for whom, in which order, and what cannot be."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_hpc.core.document import parse_document
from nexa_hpc.core.graph import Graph, Node, build_graph, check_graph
from nexa_hpc.core.spec import parse_pipeline


def graph(
    *steps: tuple[str, list[str] | None], implied: dict[str, list[str]] | None = None
) -> Graph:
    nodes = [Node(*step) for step in steps]
    assert check_graph(nodes, implied or {}) == []
    return build_graph(nodes, implied or {})


def messages(
    *steps: tuple[str, list[str] | None], implied: dict[str, list[str]] | None = None
) -> list[str]:
    return [problem.message for problem in check_graph([Node(*s) for s in steps], implied or {})]


def test_a_step_without_after_waits_for_the_one_before_it() -> None:
    found = graph(("a", None), ("b", None), ("c", None))
    assert found.parents == {"a": (), "b": ("a",), "c": ("b",)}
    assert found.children == {"a": ("b",), "b": ("c",), "c": ()}


def test_an_empty_after_waits_for_nothing() -> None:
    assert graph(("a", None), ("b", [])).parents["b"] == ()


def test_what_a_step_reads_is_waited_for_whatever_after_says() -> None:
    found = graph(("a", None), ("b", None), ("c", []), implied={"c": ["a", "a"]})
    assert found.parents["c"] == ("a",)
    assert found.data_parents == {"a": (), "b": (), "c": ("a",)}


def test_a_parent_counts_once_however_often_it_is_named() -> None:
    found = graph(("a", None), ("b", ["a", "a"]), implied={"b": ["a"]})
    assert found.parents["b"] == ("a",)
    assert found.children["a"] == ("b",)


def test_the_documents_own_order_is_kept_where_it_can_be() -> None:
    assert graph(("c", []), ("a", []), ("b", [])).order == ("c", "a", "b")
    assert graph(("late", ["early"]), ("early", []), ("other", [])).order == (
        "early", "late", "other",
    )  # fmt: skip


def test_ancestors_and_descendants_reach_all_the_way() -> None:
    found = graph(("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["a"]), ("e", []))
    assert found.ancestors("c") == {"a", "b"}
    assert found.descendants("a") == {"b", "c", "d"}
    assert found.ancestors("e") == found.descendants("e") == frozenset()


def test_a_diamond_is_walked_once() -> None:
    found = graph(("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"]))
    assert found.order == ("a", "b", "c", "d")
    assert found.ancestors("d") == {"a", "b", "c"}


def test_an_unknown_id_is_told_with_the_nearest() -> None:
    assert messages(("train", None), ("eval", ["trian"])) == [
        "unknown step 'trian'; did you mean 'train'?"
    ]


def test_an_id_given_twice_is_told() -> None:
    assert messages(("a", None), ("b", None), ("a", None)) == ["the id 'a' is given to two steps"]


def test_a_step_that_waits_for_itself_is_told() -> None:
    assert messages(("a", ["a"])) == ["the step waits for itself"]
    assert messages(("a", []), implied={"a": ["a"]}) == ["the step waits for itself"]


def test_a_cycle_is_spelt_out() -> None:
    assert messages(("a", ["c"]), ("b", ["a"]), ("c", ["b"]), ("d", ["c"])) == [
        "a cycle, each waits for the next: a → c → b → a"
    ]


def test_a_cycle_through_the_implicit_order_says_how_it_came_about() -> None:
    (message,) = messages(("a", []), ("b", None), implied={"a": ["b"]})
    assert message == (
        "a cycle, each waits for the next: a → b → a;"
        " 'b' has no `after`, so it waits for the step before it"
    )


def test_a_cycle_is_told_beside_an_unknown_id() -> None:
    assert messages(("a", ["b", "x"]), ("b", ["a"])) == [
        "unknown step 'x'",
        "a cycle, each waits for the next: a → b → a",
    ]


def test_each_of_several_cycles_is_told() -> None:
    found = messages(("a", ["b"]), ("b", ["a"]), ("c", ["d"]), ("d", ["c"]))
    assert len(found) == 2


def test_hundreds_of_cycles_are_told_by_the_first_few() -> None:
    names = [f"s{n}" for n in range(100)]
    assert len(messages(*[(name, names) for name in names])) == 10


def test_problems_have_their_lines() -> None:
    text = (
        "pipeline:\n  name: p\n  steps:\n"
        "    - id: a\n      uses: x\n      after: [b, wat]\n"
        "    - id: b\n      uses: x\n      after: [a]\n"
        "    - id: a\n      uses: x\n"
    )
    document = parse_document(text.encode(), "p.yaml")
    steps = parse_pipeline(document).steps
    assert [str(problem) for problem in check_graph(steps, {}, document)] == [
        "p.yaml:6: step 'a': after: unknown step 'wat'",
        "p.yaml:10: step 'a': id: the id 'a' is given to two steps (first in line 4)",
    ]
    cycle = check_graph([Node("a", ["b"]), Node("b", ["a"])], {}, document)
    assert str(cycle[0]) == (
        "p.yaml:6: step 'a': after: a cycle, each waits for the next: a → b → a (lines 4, 7)"
    )


@st.composite
def acyclic(draw: st.DrawFn) -> tuple[list[Node], dict[str, list[str]]]:
    """Steps in any order whose edges all lead from a lower to a higher rank."""
    count = draw(st.integers(1, 12))
    ranks = draw(st.permutations(range(count)))

    def lower(rank: int) -> list[str]:
        if not rank:
            return []
        return [f"s{n}" for n in draw(st.lists(st.integers(0, rank - 1), max_size=4))]

    nodes = [Node(f"s{rank}", lower(rank)) for rank in ranks]
    return nodes, {f"s{rank}": lower(rank) for rank in ranks if draw(st.booleans())}


@given(acyclic())
@settings(deadline=None)
def test_the_order_respects_every_edge(case: tuple[list[Node], dict[str, list[str]]]) -> None:
    nodes, implied = case
    assert check_graph(nodes, implied) == []
    found = build_graph(nodes, implied)
    place = {step_id: number for number, step_id in enumerate(found.order)}
    assert sorted(found.order) == sorted(node.id for node in nodes)
    for node in nodes:
        above = {*(node.after or ()), *implied.get(node.id, ())}
        assert set(found.parents[node.id]) == above
        assert all(place[parent] < place[node.id] for parent in above)
        assert all(node.id in found.children[parent] for parent in above)
        assert found.ancestors(node.id) == above.union(*map(found.ancestors, above))
        assert all(node.id in found.descendants(other) for other in found.ancestors(node.id))


@given(acyclic())
@settings(deadline=None)
def test_an_order_that_is_right_already_is_kept(
    case: tuple[list[Node], dict[str, list[str]]],
) -> None:
    nodes, implied = case
    order = build_graph(nodes, implied).order
    by_id = {node.id: node for node in nodes}
    assert build_graph([by_id[step_id] for step_id in order], implied).order == order


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_graph_either_has_a_problem_or_an_order(edges: list[list[int]]) -> None:
    nodes = [
        Node(f"s{n}", [f"s{parent}" for parent in above if parent < len(edges)])
        for n, above in enumerate(edges)
    ]
    if not check_graph(nodes, {}):
        place = {step_id: n for n, step_id in enumerate(build_graph(nodes, {}).order)}
        assert all(place[parent] < place[node.id] for node in nodes for parent in node.after or ())


@pytest.mark.parametrize("shape", ["chain", "reversed chain", "wide"])
def test_ten_thousand_steps_take_no_time_and_no_stack(shape: str) -> None:
    names = [f"s{n}" for n in range(10_000)]
    if shape == "chain":
        nodes = [Node(name, None) for name in names]
    elif shape == "reversed chain":
        nodes = [Node(a, [b]) for a, b in zip(names, [*names[1:], "end"], strict=True)]
        nodes.append(Node("end", []))
    else:
        nodes = [*(Node(name, []) for name in names), Node("end", names)]
    start = time.process_time()
    assert check_graph(nodes, {}) == []
    found = build_graph(nodes, {})
    assert len(found.order) == len(nodes)
    assert len(found.ancestors("end" if shape == "wide" else found.order[-1])) == len(nodes) - 1
    assert time.process_time() - start < 2
