/* The commit protocol as a model for spin: what commit::Protocol decides (the transitions have the same names), what
 * is durable in the ledger, another process that revokes by appending to that ledger, appends that fail or whose
 * acknowledgement is lost, and crashes at any moment. Steps read nothing: what the ledger has gained is read beside
 * them, and a step that finds it unread holds what anchors are bound to. A ledger that fails too long refutes. The
 * code's suspend is revoke without a memory: it ends what is open as revoke does here, and promises nothing more.
 *
 * check.py runs it in several sizes and says what was explored. -DBUG_... breaks one rule, and spin must notice: a
 * property that cannot fail proves nothing. -DTRACE makes simulations print what protocol_trace_test reads.
 *
 * A commit whose trajectory a crash has taken gets no verdict, so progress is not claimed for it: its record stays,
 * nothing is ever released for it, and no process may speak for the trajectories of another that shares the ledger.
 */
#ifndef NT
#define NT 2        /* trajectories: 0 binds both anchors, 1 binds anchor 0 */
#endif
#ifndef NC
#define NC 2        /* commits of trajectory 0 */
#endif
#ifndef NC1
#define NC1 1       /* commits of trajectory 1 */
#endif
#ifndef NE
#define NE 1        /* effects */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef BAD
#define BAD 1       /* commits that turn out to be bad */
#endif
#ifndef LOSSES
#define LOSSES 0    /* appends that give an error */
#endif
#ifndef RUN_AHEAD
#define RUN_AHEAD 2
#endif
#define NA 2        /* anchors: 0 is revoked by another process, 1 by this one */
#define NEVER 15

/* The ledger. A revocation's place among the verdicts of a trajectory is told by how many there were before it. */
byte led[NT];            /* commits */
byte vled[NT];           /* commits with a good verdict */
byte revoked_led;        /* set of anchors */
byte revoked_at[NT * NA] = NEVER;

/* commit::Protocol. A crash takes it. */
bool known[NT];
bool closed[NT];
byte sealed[NT];
byte durable[NT];        /* acknowledged: the first so many */
byte validated[NT];      /* the first so many */
byte refuted_from[NT] = NEVER;  /* all from this one on; the trajectory is stopped */
byte revoked;            /* set of anchors */
byte effect[NE];
byte owner[NE];
byte needs[NE];
#define NONE 0
#define PENDING 1
#define RELEASED 2
#define WITHHELD 3

/* The engine around it. A crash takes this, too. */
bool up = true;
byte verdict[NT];        /* found good; the record of it is on its way */
byte seen;               /* revocations in the part of the ledger that was read */
byte covered[NT];        /* verdicts in that part */
bool heard = true;       /* all of the ledger was read when the step under way began */
byte unsure[NT];         /* the last append gave an error: 1 and its record is not in the ledger, 2 and it is */
byte revoking;           /* what this process does with anchor 1: 1 its record is durable, 2 revoke was called */

/* What others were promised, and what was true when the step under way began: for the properties alone. */
bool opened[NT];
bool over[NT];           /* taken by a crash, or forgotten with everything decided */
byte promised[NT];       /* commits that were ever acknowledged */
byte promised_revoked;   /* revocations that this process acknowledged */
byte step_revoked;       /* revocations in the ledger when the step began */
byte crashes;
byte bad;
byte losses;

#define anchors_of(t) (t == 0 -> 3 : 1)
#define stopped(t) (refuted_from[t] != NEVER)
#define may_run(t) (known[t] && !stopped(t) && !closed[t] && sealed[t] - validated[t] < RUN_AHEAD)
#define undecided(t) (validated[t] < sealed[t] && validated[t] < refuted_from[t])
#define decided(t, n) (over[t] || n < validated[t] || n >= refuted_from[t])
#define waits(e, t) (effect[e] == PENDING && owner[e] == t)
#if NE > 1
#define asked(t) (waits(0, t) || waits(1, t))
#else
#define asked(t) waits(0, t)
#endif

/* Nothing uses an anchor whose revocation this process has acknowledged; nor one that another process has revoked,
 * save in the step that was under way. */
#define unrevoked(t) ((anchors_of(t) & (promised_revoked | step_revoked)) == 0)
/* The verdicts on the first n commits stand in the ledger before any revocation of an anchor bound. */
#define good_before(t, n) (n <= vled[t] && n <= revoked_at[t * NA] && (t != 0 || n <= revoked_at[t * NA + 1]))

/* What take answers for an effect that is asked for. */
#ifdef BUG_RELEASE_DURABLE
#define caused(e) (needs[e] <= durable[owner[e]])
#else
#define caused(e) (needs[e] <= validated[owner[e]])
#endif
#ifdef BUG_RELEASE_REVOKED
#define condemned(e) (refuted_from[owner[e]] < needs[e])
#else
#define condemned(e) (refuted_from[owner[e]] < needs[e] || (anchors_of(owner[e]) & revoked) != 0)
#endif
#define outcome(e) (condemned(e) -> WITHHELD : (caused(e) -> RELEASED : PENDING))

#include "trace.pml"

/* What nobody asks for any more is cleared, so that fewer states differ. */
inline clear(t) {
  known[t] = false;
  over[t] = true;
#ifndef TRACE
  closed[t] = false;
  sealed[t] = 0;
  durable[t] = 0;
  validated[t] = 0;
  refuted_from[t] = NEVER;
  verdict[t] = 0;
  covered[t] = 0;
  unsure[t] = 0;
  vled[t] = 0;
  revoked_at[t * NA] = NEVER;
  revoked_at[t * NA + 1] = NEVER
#endif
}

inline forget(t) {
  if
  :: closed[t] && !undecided(t) && !asked(t) -> clear(t)
  :: else -> skip
  fi
}

inline stop_from(t, n) {
  refuted_from[t] = (n < refuted_from[t] -> n : refuted_from[t]);
  forget(t)
}

inline revoke(a) {
  revoked = revoked | (1 << a);
  i = 0;
  do
  :: i < NT ->
     if
     :: known[i] && (anchors_of(i) & (1 << a)) ->
#ifdef BUG_REVOKE_KEEPS_COMMITS
        stop_from(i, sealed[i])
#else
        stop_from(i, validated[i])
#endif
     :: else -> skip
     fi;
     i++
  :: else -> break
  od;
  i = 0;
  trace1("TRACE revoke %d\n", a)
}

/* Reads what is new in the ledger. */
inline poll() {
  i = 0;
#ifndef BUG_NO_POLL
  if
  :: (revoked_led & ~seen) & 1 -> revoke(0)
  :: else -> skip
  fi;
  if
  :: (revoked_led & ~seen) & 2 -> revoke(1)
  :: else -> skip
  fi;
#endif
  seen = revoked_led;
  do
  :: i < NT -> covered[i] = vled[i]; i++
  :: else -> break
  od;
  i = 0
}

inline enter_revocation(a) {
  revoked_led = revoked_led | (1 << a);
  i = 0;
  do
  :: i < NT -> revoked_at[i * NA + a] = (over[i] || !(anchors_of(i) & (1 << a)) -> NEVER : vled[i]); i++
  :: else -> break
  od;
  i = 0
}

inline open(t) {
  opened[t] = true;
#ifdef BUG_OPEN_UNCHECKED
  if
  :: true ->
#else
  if
  :: anchors_of(t) & revoked -> trace2("TRACE open %d %d\n", t, 0)
  :: else ->
#endif
     must(unrevoked(t));
     known[t] = true;
     trace2("TRACE open %d %d\n", t, 1)
  fi
}

inline seal(t) {
  must(unrevoked(t));
  must(sealed[t] - validated[t] < RUN_AHEAD);
  sealed[t]++;
  trace1("TRACE seal %d\n", t)
}

inline close(t) {
  closed[t] = true;
  forget(t);
  trace1("TRACE close %d\n", t)
}

inline request(t, e) {
  effect[e] = PENDING;
  owner[e] = t;
  needs[e] = sealed[t];
  trace2("TRACE request %d %d\n", t, e)
}

/* The question to commit::Protocol is take; release and withhold are its answers. */
inline take(e) {
  effect[e] = outcome(e);
  if
  :: effect[e] == RELEASED ->
     must(needs[e] <= validated[owner[e]] && good_before(owner[e], needs[e]));
     must(unrevoked(owner[e]))
  :: else -> skip
  fi;
  t = owner[e];
  owner[e] = 0;
  needs[e] = 0;
  forget(t);
  t = 0;
  if
  :: effect[e] == RELEASED -> trace1("TRACE release %d\n", e)
  :: else -> trace1("TRACE withhold %d\n", e)
  fi
}

inline acknowledge(t) {
  durable[t]++;
  promised[t] = (durable[t] > promised[t] -> durable[t] : promised[t]);
  trace2("TRACE acknowledge %d %d\n", t, durable[t] - 1)
}

inline validate(t) {
  must(good_before(t, validated[t] + 1));
  validated[t]++;
  forget(t);
  trace2("TRACE validate %d %d\n", t, validated[t] - 1)
}

inline refute(t, n) {
  bad++;
  stop_from(t, n);
  trace2("TRACE refute %d %d\n", t, n)
}

#ifdef BUG_RUN_AFTER_STOP
#define may_seal(t) (known[t] && !closed[t] && sealed[t] - validated[t] < RUN_AHEAD && sealed[t] < (t == 0 -> NC : NC1))
#else
#ifdef BUG_RUN_AHEAD
#define may_seal(t) (known[t] && !closed[t] && !stopped(t) && sealed[t] < (t == 0 -> NC : NC1))
#else
#define may_seal(t) (may_run(t) && sealed[t] < (t == 0 -> NC : NC1))
#endif
#endif

/* A step knows without a read whether there is anything to read. */
#ifdef BUG_USE_UNREAD
#define all_read true
#else
#define all_read (seen == revoked_led)
#endif

#define of_engine(t) \
  :: d_step { up && heard && !opened[t] && now_and_then(13 + 8 * t) -> open(t) } \
  :: d_step { up && heard && may_seal(t) -> seal(t) } \
  :: d_step { up && known[t] && !closed[t] && now_and_then(8) -> close(t) }

#define requests(t, e) :: d_step { up && known[t] && !closed[t] && effect[e] == NONE && now_and_then(7) -> request(t, e) }

/* Generation: steps for ever, each beginning with a look at whether the ledger was read. */
active proctype engine() {
  byte i;
end:
  do
  :: d_step { up -> heard = all_read; step_revoked = revoked_led; count_step() }
  of_engine(0)
  requests(0, 0)
#if NT > 1
  of_engine(1)
  requests(1, 0)
#endif
#if NE > 1
  requests(0, 1)
#if NT > 1
  requests(1, 1)
#endif
#endif
  od
}

/* Reads what the ledger has gained. */
active proctype reader() {
  byte i;
end:
  do
  :: d_step { up && seen != revoked_led -> poll() }
  od
}

#define may_take(e) (outcome(e) == WITHHELD || (outcome(e) == RELEASED && heard))

active proctype gate() {
  byte i, t;
end:
  do
  :: d_step { up && effect[0] == PENDING && may_take(0) -> take(0) }
#if NE > 1
  :: d_step { up && effect[1] == PENDING && may_take(1) -> take(1) }
#endif
  od
}

#ifdef BUG_ACKNOWLEDGE_EARLY
#define acknowledgeable(t) (durable[t] < sealed[t])
#else
#define acknowledgeable(t) (durable[t] < sealed[t] && durable[t] + (unsure[t] == 2 -> 1 : 0) < led[t])
#endif
#ifdef BUG_VALIDATE_UNREAD
#define readable(t) vled[t]
#else
#define readable(t) covered[t]
#endif
#ifdef BUG_CLOSED_UNVALIDATED
#define attended(t) (known[t] && !closed[t])
#else
#ifdef BUG_STOPPED_UNVALIDATED
#define attended(t) (known[t] && !stopped(t))
#else
#define attended(t) (known[t])
#endif
#endif

inline enter_record(t) {
  led[t]++;
  must(led[t] <= sealed[t])
}

#define fail_to_enter(t, outcome_of_it) losses++; unsure[t] = outcome_of_it
/* Before the same record is entered again, it is looked for. */
inline look(t) {
#ifdef BUG_APPEND_BLIND
  led[t] = led[t] + (unsure[t] == 2 -> 1 : 0);
  must(led[t] <= sealed[t]);
#endif
  unsure[t] = 0
}

#define enters(t) (up && unsure[t] == 0 && led[t] < sealed[t])
#define of_committer(t) \
  :: d_step { enters(t) -> enter_record(t) } \
  :: d_step { enters(t) && losses < LOSSES -> fail_to_enter(t, 1) } \
  :: d_step { enters(t) && losses < LOSSES -> enter_record(t); fail_to_enter(t, 2) } \
  :: d_step { up && unsure[t] != 0 -> look(t) } \
  :: d_step { up && acknowledgeable(t) -> acknowledge(t) } \
  :: d_step { up && vled[t] < verdict[t] -> vled[t]++ } \
  :: d_step { up && covered[t] < vled[t] -> poll() } \
  :: d_step { up && known[t] && validated[t] < readable(t) && undecided(t) -> validate(t) }

/* Makes records durable, and tells what has become so. */
active proctype committer() {
  byte i;
end:
  do
  of_committer(0)
#if NT > 1
  of_committer(1)
#endif
  od
}

#define of_validator(t) \
  :: d_step { up && attended(t) && verdict[t] < durable[t] && verdict[t] < refuted_from[t] -> verdict[t]++ } \
  :: d_step { up && known[t] && undecided(t) && bad < BAD && now_and_then(16) -> refute(t, validated[t]) } \
  :: d_step { up && known[t] && sealed[t] > validated[t] + 1 && undecided(t) && bad < BAD && now_and_then(16) -> refute(t, sealed[t] - 1) }

active proctype validator() {
  byte i;
end:
  do
  of_validator(0)
#if NT > 1
  of_validator(1)
#endif
  od
}

/* Revokes anchor 1 in the engine's process, if anybody wants that. */
active proctype here() {
  byte i;
end:
  do
  :: d_step { up && revoking == 0 && !(revoked_led & 2) && now_and_then(40) -> enter_revocation(1); revoking = 1 }
#ifdef BUG_REVOCATION_ACKNOWLEDGED_EARLY
  :: d_step { up && revoking == 1 -> promised_revoked = promised_revoked | 2; revoking = 2 }
#else
  :: d_step { up && revoking == 1 -> revoke(1); revoking = 2 }
  :: d_step { up && revoking == 2 -> promised_revoked = promised_revoked | 2; revoking = 3 }
#endif
  :: now_and_then(40) -> break
  od
}

/* Revokes anchor 0 from elsewhere, if anybody wants that. */
active proctype elsewhere() {
  byte i;
end:
  if
  :: d_step { now_and_then(32) -> enter_revocation(0) }
  :: now_and_then(32)
  fi
}

inline crash() {
  up = false;
  crashes++;
  i = 0;
  do
  :: i < NT ->
#ifdef BUG_TAIL_NOT_FLUSHED
     led[i] = (led[i] > 0 -> led[i] - 1 : 0);
#endif
     must(promised[i] <= led[i]);
     unsure[i] = 0;
     if
     :: known[i] -> clear(i)
     :: else -> skip
     fi;
     i++
  :: else -> break
  od;
  i = 0;
  do
  :: i < NE ->
     effect[i] = (effect[i] == PENDING -> WITHHELD : effect[i]);
     owner[i] = 0;
     needs[i] = 0;
     i++
  :: else -> break
  od;
  i = 0;
  revoked = 0;
  seen = 0;
  revoking = 0;
  step_revoked = 0;
  trace1("TRACE crash %d\n", crashes)
}

inline recover() {
  up = true;
  i = 0;
  trace1("TRACE recover %d\n", crashes);
#ifdef BUG_RECOVER_BLIND
  seen = revoked_led;
#endif
  poll();
  heard = true;
  step_revoked = revoked_led
}

active proctype machine() {
  byte i;
end:
  do
  :: d_step { up && crashes < CRASHES && now_and_then(48) -> crash() }
  :: d_step { !up -> recover() }
  od
}

#ifdef PROGRESS
#define is_sealed (sealed[PROGRESS_T] > PROGRESS_N)
#define is_decided (decided(PROGRESS_T, PROGRESS_N))
ltl progress { [] (is_sealed -> <> is_decided) }
#endif
