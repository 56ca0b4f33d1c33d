#include <algorithm>

#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_fold_rounds.cuh"
#include "backend/cuda/barrier.cuh"
#include "backend/cuda/launch.cuh"

/// The fold of partial states to results, by so few blocks that all of them start beside the kernel before
/// and the next kernel can begin behind it. Rows are cut into rounds of parts. Where there are few rows the
/// warps of a block take the rounds of a row in turn: what does not need the parts before is done ahead of
/// the turn. Only outputs and denominators need the order of the parts: references are raised so seldom that
/// the factors of a round are found at once.
namespace fieldprint::backend::cuda {
namespace {

// What a block of items leaves free on its multiprocessor, in each of the four parts.
constexpr int kFoldWarps = 8;
constexpr int kFoldRegisters = 128;

/// What a row needs besides its parts, on its way long before it is needed: the sink, which is one token
/// whose scales have factors of their own, and the values' scales.
template <int kOutputs>
struct RowInputs {
  static constexpr int kWords = 2;  ///< of a lane, as heads have up to 256 channels

  bool sink_seen;
  int key[kWords];
  int query[kWords];
  std::int32_t step;
  float key_factor;
  float value_factor;
  std::int8_t value[kOutputs];
  float v_scale[kOutputs];

  __device__ void load(const FoldRow<kOutputs>& at) {
    const AttentionArgs& args = at.args.attention;
    const std::int32_t dim = args.head_dim;
    const std::uint8_t* page = args.kv.pool + at.query.sink_block * args.kv.block_stride +
                               args.kv.layer_offset +
                               static_cast<std::int64_t>(at.kv_head()) * page_size(dim);
    const std::int64_t row = static_cast<std::int64_t>(at.query.token) * args.heads + at.head;
    sink_seen = args.window == 0 || at.query.position < args.window;
    step = args.q_step[row];
    key_factor = args.scales.sink[4 * at.kv_head() + kSinkKeyScale];
    value_factor = args.scales.sink[4 * at.kv_head() + kSinkValueScale];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int word = at.lane + 32 * i;
      key[i] = word < dim / 4 ? reinterpret_cast<const int*>(page)[word] : 0;
      query[i] = word < dim / 4 ? reinterpret_cast<const int*>(args.q + row * dim)[word] : 0;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      value[i] = static_cast<std::int8_t>(page[exact::kPageTokens * (dim + at.channel(i))]);
      v_scale[i] = args.scales.v_scale[at.kv_head() * dim + at.channel(i)];
    }
  }

  __device__ void sink(RowState<kOutputs>& state) const {
    state.clear();
    if (!sink_seen) return;
    int dot = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) dot = __dp4a(key[i], query[i], dot);
    dot = __reduce_add_sync(kAllLanes, dot);
    state.reference = __fmul_rn(__fmul_rn(__int2float_rn(dot), score_unit(step)), key_factor);
    state.denominator = static_cast<float>(exact::kLargestWeight);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      state.output[i] = __fmul_rn(__int2float_rn(exact::kLargestWeight * value[i]), value_factor);
    }
  }
};

/// Holds the anchors' share between floor and ceiling, and returns the share given.
template <int kOutputs>
__device__ float apply_mass_policy(const PlannedQuery& query, RowState<kOutputs>& anchors,
                                   const RowState<kOutputs>& context) {
  if (isinf(anchors.reference)) return 0.0F;
  if (isinf(context.reference)) return 1.0F;
  const float reference = fmaxf(anchors.reference, context.reference);
  float mine = __fmul_rn(anchors.denominator, exp2(__fsub_rn(anchors.reference, reference)));
  const float others = __fmul_rn(context.denominator, exp2(__fsub_rn(context.reference, reference)));
  float odds = -1.0F;
  if (mine < __fmul_rn(query.floor_odds, others)) odds = query.floor_odds;
  if (mine > __fmul_rn(query.ceiling_odds, others)) odds = query.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = __fmul_rn(context.denominator, odds);
    const float factor = __fdiv_rn(wanted, anchors.denominator);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) anchors.output[i] = __fmul_rn(anchors.output[i], factor);
    anchors.denominator = wanted;
    anchors.reference = context.reference;
    mine = __fmul_rn(odds, others);
  }
  return __fdiv_rn(mine, __fadd_rn(mine, others));
}

/// Where the warps of a team hand a row on, each to the next one, its reference ahead of the rest.
template <int kOutputs>
struct Handover {
  static constexpr int kWords = 2 + kOutputs;
  struct Saved {
    float words[kWords][32];

    __device__ void put(const RowState<kOutputs>& state, int lane) {
      words[0][lane] = state.reference;
      words[1][lane] = state.denominator;
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) words[2 + i][lane] = state.output[i];
    }
    __device__ void get(RowState<kOutputs>& state, int lane) const {
      state.reference = words[0][lane];
      state.denominator = words[1][lane];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) state.output[i] = words[2 + i][lane];
    }
  };

  Saved row;
  Saved anchors;
  float reference;
  std::uint64_t turns[2][kFoldWarps];  ///< barriers; a warp's turn begins with the end of a phase
};

/// Sink, then anchors, then context.
template <int kOutputs>
__device__ void finish(const FoldRow<kOutputs>& at, const RowInputs<kOutputs>& inputs,
                       RowState<kOutputs>& anchors, const RowState<kOutputs>& context) {
  const AttentionArgs& args = at.args.attention;
  const float mass = apply_mass_policy(at.query, anchors, context);
  RowState<kOutputs> sum;
  inputs.sink(sum);
  sum.append(anchors);
  sum.append(context);
  const std::int64_t row = static_cast<std::int64_t>(at.query.token) * args.heads + at.head;
  if (at.first_channel == 0) args.anchor_mass[row] = mass;
  if (!at.has_channels()) return;
  const float inverse = __frcp_rn(sum.denominator);
  float* out = args.out + row * args.head_dim + at.first_channel;
  float result[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    result[i] = __fmul_rn(__fmul_rn(sum.output[i], inverse), inputs.v_scale[i]);
  }
  if constexpr (kOutputs == 4) {
    *reinterpret_cast<float4*>(out) = make_float4(result[0], result[1], result[2], result[3]);
  } else {
    *out = result[0];
  }
}

/// A warp of a team that shares its rows, round by round.
template <int kOutputs, int kTeam>
class Folder {
 public:
  __device__ Folder(const ColumnsArgs& args, Handover<kOutputs>& handover, Factors* factors)
      : args_(args),
        handover_(handover),
        factors_(factors),
        lane_(static_cast<int>(threadIdx.x) % 32),
        member_(static_cast<int>(threadIdx.x) / 32 % kTeam),
        turn_(member_) {}

  /// A slice of the channels of a (query, head); the first one waits for the earlier kernels.
  __device__ void fold_row(const PlannedQuery& query, std::int32_t head, std::int32_t slice, bool first) {
    const FoldRow<kOutputs> at{args_, query, head, kOutputs * (32 * slice + lane_), lane_};
    const Rounds<Round<kOutputs>::kParts, kTeam == 1> rounds{query};
    const std::int32_t count = query.whole_parts < 0 ? 0 : rounds.count();
    RowInputs<kOutputs> inputs;
    if (turn_ < count) inputs.load(at);
    if (first) wait_for_earlier_kernels();
    for (; turn_ < count; turn_ += kTeam) {
      Round<kOutputs> round{at, {}, 0, factors_, {}, {}, 0.0F, 0.0F, false};
      round.parts = rounds.parts_of(turn_, round.first);
      round.load();
      const bool last = turn_ + 1 == count;
      if (last && rounds.has_anchor_state()) load_anchors(at);
      round.prepare();
      const bool begins_context = turn_ > 0 && turn_ == rounds.of_anchors();
      const float before = begin_reference(turn_ == 0);
      float reference = begins_context ? no_reference() : before;
      round.pass(reference);
      end_reference(reference);
      round.find_links();

      begin_turn();
      state_.reference = before;
      if (begins_context) save_anchors();
      if (turn_ == 0 || begins_context) state_.clear();
      round.append_to(state_);
      state_.reference = reference;
      RowState<kOutputs> anchors;
      anchors.clear();
      const bool has_anchors = rounds.has_anchor_state() || rounds.of_anchors() > 0;
      if (last && has_anchors && count > rounds.of_anchors()) get_anchors(anchors);
      if (last && count == rounds.of_anchors()) {
        anchors = state_;
        state_.clear();
      }
      end_turn();
      if (last) finish(at, inputs, anchors, state_);
    }
    turn_ -= count;
  }

 private:
  __device__ void wait_turn(int chain) const { barrier_wait(handover_.turns[chain] + member_, parity_); }
  __device__ void pass_turn(int chain) const {
    arrive_as_warp(handover_.turns[chain] + (member_ + 1) % kTeam, lane_ == 0);
  }

  __device__ float begin_reference(bool row_begins) const {
    if (kTeam > 1) wait_turn(0);
    if (row_begins) return no_reference();
    return kTeam > 1 ? handover_.reference : state_.reference;
  }
  __device__ void end_reference(float reference) const {
    if (kTeam == 1) return;
    __syncwarp();
    if (lane_ == 0) handover_.reference = reference;
    pass_turn(0);
  }
  __device__ void begin_turn() {
    if (kTeam == 1) return;
    wait_turn(1);
    parity_ ^= 1U;
    handover_.row.get(state_, lane_);
  }
  __device__ void end_turn() const {
    if (kTeam == 1) return;
    handover_.row.put(state_, lane_);
    pass_turn(1);
  }
  /// On their way beside the last round.
  __device__ void load_anchors(const FoldRow<kOutputs>& at) {
    const StateView& states = at.args.states;
    const float2 softmax = *reinterpret_cast<const float2*>(states.softmax(at.query.anchor_state, at.head));
    anchors_.clear();
    anchors_.reference = softmax.x;
    anchors_.denominator = softmax.y;
    if (!at.has_channels()) return;
    load_outputs(states.output(at.query.anchor_state, at.head) + at.first_channel, anchors_.output);
  }
  __device__ void save_anchors() {
    if (kTeam == 1) {
      anchors_ = state_;
    } else {
      handover_.anchors.put(state_, lane_);
    }
  }
  __device__ void get_anchors(RowState<kOutputs>& anchors) const {
    if (kTeam == 1) {
      anchors = anchors_;
    } else {
      handover_.anchors.get(anchors, lane_);
    }
  }

  const ColumnsArgs& args_;
  Handover<kOutputs>& handover_;
  Factors* factors_;
  int lane_;
  int member_;         ///< of the team
  std::int32_t turn_;  ///< of the row, the warp's next one
  std::uint32_t parity_ = 0;
  RowState<kOutputs> state_;
  RowState<kOutputs> anchors_;
};

template <int kOutputs>
__host__ __device__ constexpr std::int32_t slices_of(std::int32_t head_dim) {
  return (head_dim + 32 * kOutputs - 1) / (32 * kOutputs);
}

template <int kOutputs, int kTeam>
__global__ void __maxnreg__(kFoldRegisters) fold_kernel(const __grid_constant__ ColumnsArgs args) {
  let_later_kernels_start();
  __shared__ Factors factors[kFoldWarps][32];
  constexpr int kTeams = kFoldWarps / kTeam;  // of a block
  __shared__ Handover<kOutputs> handovers[kTeams];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (kTeam > 1) {
    auto& turns = handovers[warp / kTeam].turns;
    if (warp % kTeam == 0 && threadIdx.x % 32 == 0) {
      for (auto& chain : turns) {
        for (std::uint64_t& turn : chain) barrier_init(&turn, kArrivalsOfWarp);
        for (int i = 0; i < kArrivalsOfWarp; ++i) barrier_arrive(chain);
      }
    }
    __syncthreads();
  }
  const std::int32_t slices = slices_of<kOutputs>(args.attention.head_dim);
  const std::int64_t count = std::int64_t{args.plan.header->to_fold} * args.attention.heads * slices;
  const std::int64_t begin = std::int64_t{blockIdx.x} * kTeams + warp / kTeam;
  const std::int64_t step = std::int64_t{gridDim.x} * kTeams;
  const auto query_of = [&](std::int64_t i) {
    return args.plan.queries()[i < count ? i / slices / args.attention.heads : 0];
  };
  Folder<kOutputs, kTeam> folder(args, handovers[warp / kTeam], factors[warp]);
  PlannedQuery next = query_of(begin);
  for (std::int64_t i = begin; i < count; i += step) {
    const PlannedQuery query = next;
    next = query_of(i + step);
    folder.fold_row(query, static_cast<std::int32_t>(i / slices % args.attention.heads),
                    static_cast<std::int32_t>(i % slices), i == begin);
  }
  // A block whose warps have no rows waits too: its end says that all earlier kernels have ended.
  if (begin >= count) wait_for_earlier_kernels();
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.taken = 0;
}

template <int kOutputs, int kTeam>
void launch(const ColumnsArgs& args, std::int64_t rows, std::int64_t most_blocks, bool early, Stream stream) {
  constexpr std::int64_t kTeams = kFoldWarps / kTeam;
  const std::int64_t slices = rows * slices_of<kOutputs>(args.attention.head_dim);
  const auto blocks = static_cast<unsigned>(std::min((slices + kTeams - 1) / kTeams, most_blocks));
  const auto kernel = fold_kernel<kOutputs, kTeam>;
  // As the blocks of items have it: a multiprocessor with another cut of its memory would have to be empty
  // first.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "attention memory");
  if (early) {
    launch_early({dim3(blocks), 32 * kFoldWarps, 0, 1}, stream, kernel, args);
    return;
  }
  kernel<<<blocks, 32 * kFoldWarps, 0, stream>>>(args);
  check_launch("attention fold");
}

}  // namespace

void launch_fold(const ColumnsArgs& args, std::int32_t multiprocessors, bool after_items, Stream stream) {
  constexpr std::int64_t kRowsOfWarp = 16;  // where there are more, blocks start as others end
  const std::int64_t rows = static_cast<std::int64_t>(args.queries) * args.attention.heads;
  const std::int64_t most = rows <= kRowsOfWarp * kFoldWarps * multiprocessors ? multiprocessors : rows;
  if (rows * slices_of<1>(args.attention.head_dim) <= multiprocessors) {
    launch<1, kFoldWarps>(args, rows, most, after_items, stream);
  } else if (rows <= 4 * std::int64_t{multiprocessors}) {
    launch<4, 4>(args, rows, most, after_items, stream);
  } else {
    launch<4, 1>(args, rows, most, after_items, stream);
  }
}

}  // namespace fieldprint::backend::cuda
