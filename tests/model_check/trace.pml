/* What a simulation of protocol.pml prints, and how it keeps going; nothing of it is in a search. */
#ifdef TRACE
inline tell() {
  i = 0;
  do
  :: i < NT ->
     if
     :: up && known[i] ->
        printf("STATE %d run %d stopped %d sealed %d durable %d validated %d refuted %d\n", i,
               (may_run(i) -> 1 : 0), (stopped(i) -> 1 : 0), sealed[i], durable[i], validated[i], refuted_from[i])
     :: else -> printf("GONE %d\n", i)
     fi;
     i++
  :: else -> break
  od;
  i = 0;
  do
  :: i < NE ->
     if
     :: effect[i] == PENDING -> printf("EFFECT %d %d\n", i, outcome(i))
     :: else -> skip
     fi;
     i++
  :: else -> break
  od;
  i = 0
}
#define trace1(text, x) printf(text, x); tell()
#define trace2(text, x, y) printf(text, x, y); tell()
#else
#define trace1(text, x) skip
#define trace2(text, x, y) skip
#endif

/* A simulation only tells what happens. Chance would soon end everything, so some things happen in few steps. */
#ifdef TRACE
#define must(condition) skip
byte step;
#define now_and_then(every) (step % every == every - 1)
#define count_step() step++
#else
#define must(condition) assert(condition)
#define now_and_then(every) true
#define count_step() skip
#endif
