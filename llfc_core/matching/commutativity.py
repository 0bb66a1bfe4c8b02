"""Commutativity matching: permute B so that it commutes with A (the open question of Section 6).

Minimises f(π) = Σ_ℓ ‖(W_A − P_ℓ W_B P_{ℓ−1}ᵀ)(H_A − P_{ℓ−1} H_B)‖²/ν_ℓ (eq. 9; `residuals`), whose
two factors weight matching and activation matching make small one at a time. That is a quadratic
assignment problem, NP-hard (A.3): what is found is a good permutation from several starts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llfc_core.matching.assignment import assign_tree
from llfc_core.matching.residuals import Objective, commutativity_objective
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec, State
from llfc_core.matching.weight import TOLERANCE, Clock, families, match_weights, slots
from llfc_core.numerics import ieee

Variant = Literal["layers", "joint"]


class Search:
    def __init__(self, objective: Objective, clock: Clock) -> None:
        self.objective, self.clock = objective, clock
        self.spec = objective.spec
        self.trees = [
            members
            for members in families(self.spec).values()
            if set(members) & set(objective.groups)
        ]

    def walk(self, permutations, active, max_iterations=30, tolerance=1e-4, log=None):
        """Frank–Wolfe"""
        spec = self.spec
        groups = [g for tree in active for g in tree if g in self.objective.groups]
        terms = [t for t in self.objective.terms.values() if set(t.groups) & set(groups)]
        now: dict[str, Tensor] = self.objective.moves(permutations)
        with self.clock.timing("similarity"):
            products = [t.products(now) for t in terms]
            value = sum(t.value(p, now) for t, p in zip(terms, products))
        first = value
        best_value, best = value, permutations
        steps = 0
        for _ in range(max_iterations):
            with self.clock.timing("similarity"):
                gradient: dict[str, Tensor] = {}
                for t, p in zip(terms, products):
                    for g, v in t.gradient(p, now).items():
                        if g in groups:
                            gradient[g] = gradient[g] + v if g in gradient else v
            vertex = self.assign(permutations, active, {g: -v for g, v in gradient.items()})
            with self.clock.timing("similarity"):
                then = now | {g: slots(spec, g, vertex).to(v.device) for g, v in gradient.items()}
                after = [t.products(then) for t in terms]
                end = sum(t.value(p, then) for t, p in zip(terms, after))
                slope = sum(
                    float((v * (matrix(then[g]) - matrix(now[g]))).sum()) for g, v in gradient.items()
                )
                cubic = sum(t.cubic(p, q, now, then) for t, p, q in zip(terms, products, after))
            step = best_step(slope, end - value - slope - cubic, cubic)
            if log is not None: log.append((value, end, slope, step))
            if end < best_value:
                best_value, best = end, vertex
            if step == 0 or -slope < tolerance * first:
                break
            steps += 1
            products = [torch.lerp(p, q, step) for p, q in zip(products, after)]
            if step == 1:
                now = then
            else:
                now = now | {g: torch.lerp(matrix(now[g]), matrix(then[g]), step) for g in gradient}
            value = sum(t.value(p, now) for t, p in zip(terms, products))
        last = self.assign(permutations, active, {g: matrix(now[g]) for g in gradient})
        end = sum(t.value(t.products(m), m) for m in [self.objective.moves(last)] for t in terms)
        if end < best_value:
            best_value, best = end, last
        return best, best_value - first, steps

    def assign(self, permutations, active, similarity):
        found = dict(permutations)
        for root, *inner in active:
            size = self.spec.groups[root].size
            with self.clock.timing("assignment"):
                outer, within = assign_tree(
                    similarity.get(root, torch.zeros(size, size, dtype=torch.float64)),
                    {g: similarity[g] for g in inner if g in similarity},
                )
            was = permutations[root].argsort()[outer]
            for g in inner:
                found[g] = within.get(g, permutations[g][was])
            found[root] = outer
        return found

def matrix(move):
    return move if move.ndim == 2 else torch.eye(len(move), dtype=torch.float64, device=move.device)[move]

def best_step(slope, square, cube):
    def f(s): return s * (slope + s * (square + s * cube))
    c = [0.0, 1.0]
    # roots of slope + 2 square s + 3 cube s²
    A, B, C = 3 * cube, 2 * square, slope
    if abs(A) < 1e-300:
        if B != 0: c.append(-C / B)
    else:
        d = B * B - 4 * A * C
        if d >= 0:
            q = -0.5 * (B + math.copysign(math.sqrt(d), B))
            if q != 0: c += [q / A, C / q]
            else: c += [0.0]
    return min((s for s in c if 0 <= s <= 1), key=f)

def layers(search, perms, gen, max_sweeps=50, tol=1e-9, **kw):
    total = search.objective.value(perms)
    trace = [total]; due=set(range(len(search.trees))); nsteps=0
    sweeps=0
    while due and sweeps<max_sweeps:
        sweeps+=1
        for i in torch.randperm(len(search.trees), generator=gen).tolist():
            if i not in due: continue
            due.discard(i)
            new, gain, st = search.walk(perms, [search.trees[i]], **kw)
            nsteps+=st
            if gain < -tol:
                v = search.objective.value(new)
                if v < trace[-1]-tol:
                    perms=new; trace.append(v)
                    mine=set(search.trees[i])
                    hold=[set(t.groups) for t in search.objective.terms.values() if set(t.groups)&mine]
                    near=set().union(*hold)
                    due|={j for j,t in enumerate(search.trees) if set(t)&near}
    return perms, trace, nsteps

def joint(search, perms, gen, max_sweeps=50, tol=1e-9, **kw):
    trace=[search.objective.value(perms)]; nsteps=0
    for _ in range(max_sweeps):
        new, gain, st = search.walk(perms, search.trees, **kw)
        nsteps+=st
        v=search.objective.value(new)
        if v < trace[-1]-tol:
            perms=new; trace.append(v)
        else: break
    return perms, trace, nsteps
