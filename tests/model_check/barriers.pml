/* How the attention kernels hand shared memory over (src/backend/cuda/barrier.cuh), as models for spin: one for each way
 * in which they do it. What is exchanged is a number that says whose turn it is of, or 0 while a copy is on its way, and
 * everybody who reads asserts that it is the right one, at the beginning and at the end of reading.
 *
 *   -DTURNS   a ring of warps that work on one row in turn: the fold's teams, with the row's reference ahead of the rest,
 *             and the teams of the column items
 *   -DFEEDER  a warp of the column items and the copy engine: keys and values of one tile, each refilled as soon as read
 *   -DROWS    the row items: a warp that brings units through a ring, one that brings queries and what is told of them,
 *             and warps that compute, here one lane of each: their lanes hand over each for itself
 *
 * Barriers are those of the PTX ISA (mbarrier): a phase ends when all arrivals and all bytes have come, and a wait names
 * the parity of the phase that must have ended. Lanes of a warp run apart unless they meet in a __syncwarp or compute with
 * instructions that the whole warp executes at once (wgmma). Memory is sequentially consistent here: an arrival releases
 * and a wait acquires at the scope of a block, which is all that a program without races needs.
 *
 * check.py runs each in several sizes. -DBUG_... breaks one rule, and spin must notice.
 */
typedef Barrier {
  bit phase;
  byte count;    /* arrivals of a phase */
  byte pending;  /* of them still to come */
  byte bytes     /* still to come; a copy counts 1 */
};

inline end_phase(b) {
  if
  :: b.pending == 0 && b.bytes == 0 -> b.phase = 1 - b.phase; b.pending = b.count
  :: else
  fi
}
inline prepare(b, n) { b.count = n; b.pending = n }
inline arrive(b) { atomic { assert(b.pending > 0); b.pending--; end_phase(b) } }
inline complete(b) { atomic { assert(b.bytes > 0); b.bytes--; end_phase(b) } }
inline expect(b, n) { atomic { b.bytes = b.bytes + n } }
#define ENDED(b, parity) (b.phase != (parity))

/* __syncwarp of a warp of LANES lanes. */
#ifndef LANES
#define LANES 2
#endif
typedef Meeting {
  byte here;
  bit round
};
inline meet(m, mine) {
  atomic {
    m.here++;
    mine = m.round;
    if
    :: m.here == LANES -> m.here = 0; m.round = 1 - m.round
    :: else
    fi
  }
  m.round != mine
}

/* A warp's lanes hand over: one arrives after all have met, or each for itself. */
#ifdef EVERY_LANE_ARRIVES
#define ARRIVALS LANES
#else
#define ARRIVALS 1
#endif
inline arrive_as_warp(b, m) {
#ifdef EVERY_LANE_ARRIVES
  arrive(b)
#else
#ifndef BUG_PASSED_ON_ALONE
  meet(m, met);
#endif
  if
  :: l == 0 -> arrive(b)
  :: else
  fi
#endif
}

#ifdef TURNS
#ifndef WARPS
#define WARPS 2
#endif
#ifndef PASSES
#define PASSES 3    /* of the row through all warps */
#endif
Barrier turn[2 * WARPS];   /* chain 0: the reference; chain 1: the rest */
Meeting warp[WARPS];
byte reference;            /* the turn that wrote it, from 1 on */
byte row[LANES];

proctype Lane(byte w; byte l) {
  byte k = 0;
  bit parity = 0;
  bit met;
  byte next = (w + 1) % WARPS;
  do
  :: k < PASSES ->
#ifndef BUG_TURN_NOT_AWAITED
    ENDED(turn[w], parity);
#endif
    assert(reference == k * WARPS + w);
    meet(warp[w], met);
    if
    :: l == 0 -> reference = k * WARPS + w + 1
    :: else
    fi;
    arrive_as_warp(turn[next], warp[w]);
    ENDED(turn[WARPS + w], parity);
#ifndef BUG_PARITY_KEPT
    parity = 1 - parity;
#endif
    assert(row[l] == k * WARPS + w);
    row[l] = k * WARPS + w + 1;
    arrive_as_warp(turn[WARPS + next], warp[w]);
    k++
  :: else -> break
  od
}

init {
  byte i;
  byte j;
  atomic {
    for (i : 0 .. 2 * WARPS - 1) { prepare(turn[i], ARRIVALS) }
    for (i : 1 .. ARRIVALS) { arrive(turn[0]); arrive(turn[WARPS]) }
    for (i : 0 .. WARPS - 1) {
      for (j : 0 .. LANES - 1) { run Lane(i, j) }
    }
  }
}
#endif

#ifdef FEEDER
#ifndef TILES
#define TILES 5
#endif
Barrier filled[2];           /* of keys, of values */
Meeting warp;
byte half[2];              /* the tile there, from 1 on; 0: a copy is on its way */
chan copies = [4] of { byte, byte };

active proctype Engine() {
  byte h;
  byte t;
end:
  do
  :: copies ? h, t -> half[h] = t; complete(filled[h])
  od
}

inline copy(h, tile) {
  expect(filled[h], 1);
  arrive(filled[h]);
  half[h] = 0;
  copies ! h, tile
}
inline read(h, t) {
  assert(half[h] == t + 1);
  assert(half[h] == t + 1)
}

proctype Lane(byte l) {
  byte t = 0;
  byte h;
  bit parity = 0;
  bit met;
  if
  :: l == 0 -> copy(0, 1); copy(1, 1)
  :: else
  fi;
  do
  :: t < TILES ->
    h = 0;
    do
    :: h < 2 ->
#ifndef BUG_TILE_NOT_AWAITED
      ENDED(filled[h], parity);
#endif
      read(h, t);
#ifndef BUG_REFILLED_WHILE_READ
      meet(warp, met);
#endif
      if
      :: l == 0 && t + 1 < TILES -> copy(h, t + 2)
      :: else
      fi;
      h++
    :: else -> break
    od;
#ifndef BUG_PARITY_KEPT
    parity = 1 - parity;
#endif
    t++
  :: else -> break
  od
}

init {
  byte i;
  atomic {
    prepare(filled[0], 1);
    prepare(filled[1], 1);
    for (i : 0 .. LANES - 1) { run Lane(i) }
  }
}
#endif

#ifdef ROWS
#ifndef UNITS
#define UNITS 3            /* places of the ring */
#endif
#ifndef TASKS
#define TASKS 3
#endif
#ifndef TILES
#define TILES 1            /* of a task: two units each */
#endif
#ifndef CONSUMERS
#define CONSUMERS 2        /* warps */
#endif
Barrier filled[UNITS];
Barrier emptied[UNITS];
Barrier queries_full;
Barrier queries_empty;
Barrier info_empty[2];
Meeting teller;            /* the warp that brings queries */
byte unit[UNITS];          /* the number of the unit there, from 1 on; 0: a copy is on its way */
byte queries[LANES];       /* the task that a lane's queries are of, from 1 on */
byte info[2 * LANES];      /* likewise, for two tasks in turn */
#define KIND_QUERIES 100
chan copies = [8] of { byte, byte };

active proctype Engine() {
  byte place;
  byte what;
end:
  do
  :: copies ? place, what ->
    if
    :: place >= KIND_QUERIES -> queries[place - KIND_QUERIES] = what; complete(queries_full)
    :: else -> unit[place] = what; complete(filled[place])
    fi
  od
}

proctype UnitProducer() {
  byte n = 0;
  byte slot = 0;
  bit parity = 0;
  do
  :: n < 2 * TILES * TASKS ->
#ifndef BUG_UNIT_OVERWRITTEN
    ENDED(emptied[slot], 1 - parity);
#endif
    expect(filled[slot], 1);
    unit[slot] = 0;
    copies ! slot, n + 1;
    arrive(filled[slot]);
    n++;
    slot++;
    if
    :: slot == UNITS -> slot = 0; parity = 1 - parity
    :: else
    fi
  :: else -> break
  od
}

proctype QueryLane(byte l) {
  byte n = 0;
  byte other;
  bit met;
  do
  :: n < TASKS ->
#ifndef BUG_INFO_OVERWRITTEN
    ENDED(info_empty[n % 2], 1 - (n / 2) % 2);
#endif
    info[(n % 2) * LANES + l] = n + 1;
#ifndef BUG_TOLD_APART
    meet(teller, met);
#endif
#ifndef BUG_QUERIES_OVERWRITTEN
    ENDED(queries_empty, 1 - n % 2);
#endif
    if
    :: l == 0 -> expect(queries_full, LANES)
    :: else
    fi;
#ifndef BUG_TOLD_APART
    meet(teller, met);
#endif
    /* Whose queries these are, another lane may have written. */
    other = (l + 1) % LANES;
    assert(info[(n % 2) * LANES + other] == n + 1);
    queries[l] = 0;
    copies ! KIND_QUERIES + l, n + 1;
    arrive_as_warp(queries_full, teller);
    n++
  :: else -> break
  od
}

inline read_info(task) {
  for (i : 0 .. LANES - 1) { assert(info[(task % 2) * LANES + i] == task + 1) }
}
inline read_queries(task) {
  for (i : 0 .. LANES - 1) { assert(queries[i] == task + 1) }
}
inline read_unit() {
  ENDED(filled[slot], parity);
#ifdef BUG_RELEASED_EARLY
  arrive(emptied[slot]);
#endif
  assert(unit[slot] == n + 1);
  if
  :: n % 2 == 0 -> read_queries(task)
  :: else
  fi;
  assert(unit[slot] == n + 1);
#ifndef BUG_RELEASED_EARLY
  arrive(emptied[slot]);
#endif
  n++;
  slot++;
  if
  :: slot == UNITS -> slot = 0; parity = 1 - parity
  :: else
  fi
}

proctype Consumer() {
  byte task = 0;
  byte tile;
  byte n = 0;
  byte slot = 0;
  byte i;
  bit parity = 0;
  do
  :: task < TASKS ->
    ENDED(queries_full, task % 2);
    read_info(task);
    read_queries(task);
    tile = 0;
    do
    :: tile < TILES ->
      read_unit();
      read_info(task);
      if
      :: tile + 1 == TILES -> arrive(queries_empty)
      :: else
      fi;
      read_unit();
      tile++
    :: else -> break
    od;
    read_info(task);
    arrive(info_empty[task % 2]);
    task++
  :: else -> break
  od
}

init {
  byte i;
  atomic {
    for (i : 0 .. UNITS - 1) { prepare(filled[i], 1); prepare(emptied[i], CONSUMERS) }
    prepare(queries_full, ARRIVALS);
    prepare(queries_empty, CONSUMERS);
    for (i : 0 .. 1) { prepare(info_empty[i], CONSUMERS) }
    run UnitProducer();
    for (i : 0 .. LANES - 1) { run QueryLane(i) }
    for (i : 1 .. CONSUMERS) { run Consumer() }
  }
}
#endif
