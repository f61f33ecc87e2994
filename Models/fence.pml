/* Sources/Memory/DMA/TranslationFence.swift, Lease.swift, QueueHolds.swift: a queue that looks pages up and keeps chains in flight,
 * and two control threads that unmap a page each. Scripts/protocol checks it with spin, and that each line marked with a
 * number is needed: with -DBREAK=n the line is left out, or stands in the wrong place, and spin must find what goes wrong: a
 * mapping used after its end was acknowledged, a drain that waits for a chain that is none of its business, or one that sleeps
 * for ever.
 *
 * Memory is as weak as the code leaves it. What a process stores waits in a buffer of its own (pend_x) and becomes visible at
 * any time, in any order; a release store after all before it; a fence waits for all. Loads are in order: they are acquires. */
#ifndef BREAK
#define BREAK 0
#endif

byte gen;                         /* the generation */
byte page_of[8];                  /* what each generation took away */
byte map[2] = 1;                  /* which mapping of the page is in force; 0: none */
byte dead[2];                     /* the last mapping whose end was acknowledged */
byte round, stamp, pair = 2;      /* the queue's holds: visible values */
byte waiting;
bool news[2];                     /* `turn` is another than the thread has seen */
bool listed = true;

/* The queue's buffer, and a thread's: value and whether it is there. */
byte pend_round, pend_stamp, pend_pair; bool has_round, has_stamp, has_pair, release_round, release_stamp;
byte pend_gen[2], pend_map[2]; bool has_gen[2], has_map[2];

#define FENCE_QUEUE   !has_round && !has_stamp && !has_pair
#define FENCE(me)     !has_gen[me] && !has_map[me]

active proctype memory() {
end:
  do
  :: atomic { has_pair -> pair = pend_pair; pend_pair = 0; has_pair = false }
  :: atomic { has_stamp && (!release_stamp || !has_pair) -> stamp = pend_stamp; pend_stamp = 0; has_stamp = false; release_stamp = false }
  :: atomic { has_round && (!release_round || (!has_pair && !has_stamp)) -> round = pend_round; pend_round = 0; has_round = false; release_round = false }
  :: atomic { has_map[0] -> map[0] = pend_map[0]; pend_map[0] = 0; has_map[0] = false }
  :: atomic { has_map[1] -> map[1] = pend_map[1]; pend_map[1] = 0; has_map[1] = false }
  :: atomic { has_gen[0] && !has_map[0] -> gen = pend_gen[0]; pend_gen[0] = 0; has_gen[0] = false }
  :: atomic { has_gen[1] && !has_map[1] -> gen = pend_gen[1]; pend_gen[1] = 0; has_gen[1] = false }
  od
}

inline store_round(v, isRelease) { d_step { pend_round = v; has_round = true; release_round = isRelease } }
inline publish(p, g) {            /* SegmentHeader.publish: no order; the end of the round makes both visible */
  d_step { pend_pair = p; has_pair = true; pend_stamp = g + 1; has_stamp = true; release_stamp = false }
}
inline unpublish() { d_step { pend_stamp = 0; has_stamp = true; release_stamp = true } }
inline wake() {
#if BREAK != 1
  FENCE_QUEUE;
#endif
  if :: atomic { waiting > 0 -> news[0] = true; news[1] = true } :: else fi
}
inline use(p, v) { assert(v > dead[p]) }   /* an access: its mapping's end has not been acknowledged */

active proctype queue() {
  byte known = 255, g, p, v, i, cache[2];   /* mappings of pages that are remembered */
  byte mine = 2, held;                      /* the chain in flight: its page, and the mapping it was resolved through */
end:
  do
  :: true ->
    do                                      /* Lease.begin */
    :: g = gen;
       store_round(g + 1, true);
#if BREAK != 2
       FENCE_QUEUE;
#endif
#if BREAK == 3
       break
#else
       if :: gen == g -> break :: else -> store_round(0, true); wake() fi
#endif
    od;
    if
    :: known == 255 -> d_step { cache[0] = 0; cache[1] = 0 }
    :: else ->
#if BREAK != 4
      i = known;
      do :: i < g -> d_step { i++; cache[page_of[i]] = 0 } :: else -> break od
#endif
      skip
    fi;
    known = g;
    if :: mine != 2 -> use(mine, held); unpublish(); mine = 2 :: else fi;
    if                                      /* a chain of page 0, of page 1, or none */
    :: p = 0 :: p = 1 :: p = 2
    fi;
    if
    :: p != 2 ->
      if :: cache[p] == 0 -> cache[p] = map[p] :: else fi;
      v = cache[p];
      if
      :: v != 0 ->
        use(p, v);
#if BREAK != 5
        publish(p, g);
#endif
        mine = p; held = v
      :: else
      fi
    :: else
    fi;
    if :: mine != 2 -> use(mine, held); if :: true -> unpublish(); mine = 2 :: true fi :: else fi;
    store_round(0, true);
#if BREAK == 5
    if :: mine != 2 -> publish(mine, g) :: else fi;
#endif
    wake();
    d_step { g = 0; p = 0; v = 0; i = 0; if :: mine == 2 -> held = 0 :: else fi };
    if :: mine != 2 -> use(mine, held) :: else fi;  /* input and output between rounds */
    if
    :: true                                 /* the next round */
    :: mine == 2 -> break                   /* nothing more to do, for ever */
    :: known = 255;                         /* the queue stops: its chain ends after it, and another takes its place */
       if :: mine != 2 -> use(mine, held); unpublish(); mine = 2; wake() :: else fi;
       FENCE_QUEUE;
       listed = false; listed = true
    fi
  od
}

inline scan(me, old, busy) {                /* QueueHolds.isBusy */
  busy = false;
#if BREAK == 6
  if :: stamp != 0 && stamp - 1 <= old && pair == me -> busy = true :: else fi;
#endif
  if :: listed && round != 0 && round - 1 <= old -> busy = true :: else fi;
#if BREAK == 7
  if :: !busy && stamp != 0 && pair == me -> d_step { busy = true; wrong = (wrong || stamp - 1 > old) } :: else fi
#elif BREAK == 8
  if :: !busy && stamp != 0 && stamp - 1 <= old -> d_step { busy = true; wrong = (wrong || pair != me) } :: else fi
#elif BREAK != 6
  if :: !busy && stamp != 0 && stamp - 1 <= old -> if :: pair == me -> busy = true :: else fi :: else fi
#endif
}

byte lock;
proctype control(byte me) {
  byte old, mapping; bool busy, wrong;
  mapping = map[me];
  atomic { lock == 0 -> lock = 1 };
#if BREAK != 9
  d_step { pend_map[me] = 0; has_map[me] = true };
#endif
  old = gen;
  page_of[old + 1] = me;
  d_step { pend_gen[me] = old + 1; has_gen[me] = true };
#if BREAK == 9
  FENCE(me);
  d_step { pend_map[me] = 0; has_map[me] = true };
#endif
#if BREAK != 10
  FENCE(me);
  lock = 0;
#endif
  waiting++;
  do
  :: news[me] = false;
     scan(me, old, busy);
     if :: !busy -> break :: else fi;
     assert(!wrong);                      /* waited for a chain of another page, or a later one */
#if BREAK == 11
     news[me] = false;
#endif
     news[me]                             /* asleep until then */
  od;
  waiting--;
  dead[me] = mapping;                     /* the acknowledgement */
#if BREAK == 10
  FENCE(me);
  lock = 0;
#endif
  d_step { pend_map[me] = mapping + 1; has_map[me] = true }   /* the page is mapped anew */
  FENCE(me)
}

init { atomic { run control(0); run control(1) } }
