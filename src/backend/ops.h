#pragma once

#include <cstdint>

#include "exact/choice.h"

/// The arguments of every operation: plain structs, so that kernels see no class of ours. Pointers live where
/// the backend computes. T = tokens of the step, H = query heads, K = KV heads, D = head size. Row-major.
/// What each operation computes is defined by src/exact/CANON.md and by the scalar backend.
namespace fieldprint::backend {

enum class LinearFormat : std::uint8_t {
  kW8R = 0,    ///< int8, one float scale a row
  kW4G32 = 1,  ///< GGUF's Q4_0/Q4_1: w = d·q + m, q in 0..15, f16 d and m for each 32 columns
};

enum class ActivationFormat : std::uint8_t {
  kA8 = 0,     ///< int8, scale per token (w8r)
  kA16 = 1,    ///< int16 as two balanced int8 digits, scale per token (w8r)
  kA8G32 = 2,  ///< int8, scale per 32 columns (w4g32)
};

/// A weight matrix [rows][cols], cols a multiple of 32. Rows are padded to tiles of 16 with zeros.
///   kW8R:   data = int8 [tiles][cols/4][16][4], row_scale = float [tiles·16]
///   kW4G32: data = [tiles][cols/32] blocks of 320 bytes: 4 × [16][4] bytes, of which byte (g, r, i) holds
///   column
///           4g+i of row r in its low and column 16+4g+i in its high nibble; then f16 d[16], f16 m[16]
struct PackedWeight {
  LinearFormat format;
  ActivationFormat activation;
  std::int32_t rows;
  std::int32_t cols;
  const std::uint8_t* data;
  const float* row_scale;
};

/// Quantised rows, made by the *_quantize operations and read by linear.
///   kA8:    q [T][cols], scale [T], row_sum [T]
///   kA16:   q [T][2][cols] (high digits, then low), scale [T], row_sum [T][2]
///   kA8G32: q [T][cols], scale [T][cols/32], block_sum [T][cols/32]
/// row_sum is Σq (it undoes the offset of unsigned-by-signed instructions); block_sum is scale·Σq of the
/// block.
struct QuantRows {
  ActivationFormat format;
  std::int32_t cols;
  std::int8_t* q;
  float* scale;
  std::int32_t* row_sum;
  float* block_sum;
  std::int32_t* non_finite;  ///< [T]; set to 1 for a row that holds an infinity or NaN, else left alone
};

/// out[t] = row tokens[t] of the table, times scale. Items: tokens.
struct EmbedArgs {
  PackedWeight table;
  const std::int32_t* tokens;  ///< [T]
  float scale;
  float* out;  ///< [T][cols]
};

/// out = quantise(rms_norm(x)·weight). Items: tokens.
struct NormQuantizeArgs {
  const float* x;            ///< [*][cols]
  const std::int32_t* rows;  ///< [T] row of x for each output row, or null for the identity
  const float* weight;       ///< [cols]
  float epsilon;
  QuantRows out;
};

/// residual += rms_norm(x)·weight. Items: tokens.
struct NormAddArgs {
  const float* x;       ///< [T][cols]
  const float* weight;  ///< [cols]
  float epsilon;
  std::int32_t cols;
  float* residual;  ///< [T][cols]
};

/// out = quantise(x). Items: tokens.
struct QuantizeArgs {
  const float* x;  ///< [T][cols]
  QuantRows out;
};

enum class GateFunction : std::uint8_t { kSilu = 0, kGelu = 1 };

/// out = quantise(f(gate)·up). Items: tokens.
struct GatedQuantizeArgs {
  const float* gate_up;  ///< [T][2·cols]: gate, then up
  GateFunction function;
  QuantRows out;
};

/// y[t][r] = Σ_c w[r][c]·x[t][c], or += with accumulate. Items: tiles of 16 rows.
struct LinearArgs {
  PackedWeight w;
  QuantRows x;
  std::int32_t tokens;
  float* y;  ///< [T][y_stride]
  std::int64_t y_stride;
  bool accumulate;
};

/// One layer's pages in the pool. The page of (block, head) starts at
///   pool + block·block_stride + layer_offset + head·page_bytes(D)
/// and holds K int8 [64][D], V int8 [D][64], the tokens of V in the order of exact::value_slot.
struct KvLayer {
  std::uint8_t* pool;
  std::int64_t block_stride;
  std::int64_t layer_offset;
};
constexpr std::int64_t page_bytes(std::int64_t head_dim) { return 128 * head_dim; }

/// What one layer's keys, values and queries are quantised with: constants of the model.
struct KvScales {
  const float* k_offset;   ///< [K][D], subtracted from the rotated key
  const float* k_inverse;  ///< [K][D], 1/scale of a key's channel
  const float*
      q_factor;  ///< [K][D], scale of a key's channel times log2(e)/sqrt(d), for the queries of the group
  const float* v_inverse;  ///< [K][D], 1/scale of a value's channel
  const float* v_scale;    ///< [K][D]
  const float* sink;       ///< [K][4], for the token at position 0: SinkFactor
};
/// Factors on the scales of the token at position 0, and the inverses of these factors.
enum SinkFactor : std::uint8_t {
  kSinkKeyInverse = 0,
  kSinkKeyScale = 1,
  kSinkValueInverse = 2,
  kSinkValueScale = 3
};

/// Factored rotary tables: position p uses the complex product of entries p/256 and p%256.
struct RopeTable {
  const float* high_cos;  ///< [ceil(context/256)][D/2]
  const float* high_sin;
  const float* low_cos;  ///< [256][D/2]
  const float* low_sin;
};

/// Head norms (where the model has them), rotation, and quantisation: queries to q, keys and values into
/// their pages. Items: tokens.
struct RopeAppendArgs {
  const float* qkv;  ///< [T][(H + 2K)·D]: queries, keys, values
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  const float* q_norm;  ///< [D] or null
  const float* k_norm;  ///< [D] or null
  float epsilon;
  RopeTable rope;
  const std::int32_t* positions;  ///< [T]
  const std::int32_t* blocks;     ///< [T] block that holds the token
  const std::int32_t* slots;      ///< [T] slot in the page, 0..63
  KvScales scales;
  KvLayer kv;
  std::int8_t* q;            ///< [T][H][D]
  std::int32_t* q_step;      ///< [T][H], in units of 2^-22: a score of 1 is q_step·2^-22 in log2
  std::int32_t* non_finite;  ///< [T]
};

/// One sequence's part of a step. Its history is position 0 (the sink), anchor_tokens anchors, then context.
struct AttentionSequence {
  std::int32_t first_query;  ///< row in q and out
  std::int32_t queries;
  std::int32_t first_position;  ///< of the first query
  std::int32_t anchor_tokens;
  const std::int32_t* blocks;  ///< the sink's block, ceil(anchor_tokens/64) anchor blocks, context blocks
  float floor_odds;            ///< γ/(1−γ) of the anchor floor, 0 for none
  float ceiling_odds;          ///< of the ceiling, +infinity for none
};

/// Work on the segments before the context: `sequences` consecutive sequences whose sink and anchor blocks
/// are the same ones, so that each page is read once for all of them.
struct PrefaceItem {
  std::int32_t first_sequence;
  std::int32_t sequences;
  std::int32_t kv_head;
  std::int32_t query_begin;  ///< counted through the sequences' queries in order
  std::int32_t query_end;
};

/// Work on the context of one sequence, and the final merge.
struct ContextItem {
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t query_begin;  ///< within the sequence's queries
  std::int32_t query_end;
};

/// Softmax state of one segment for one (token, head): maximum, denominator, output [D].
constexpr std::int64_t attention_state_floats(std::int64_t head_dim) { return 2 + head_dim; }

/// Grouped-query attention over paged K and V. First every preface item, then every context item.
struct AttentionArgs {
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t window;         ///< a query sees this many positions, itself included; anchors always; 0 = all
  const std::int8_t* q;        ///< [T][H][D]
  const std::int32_t* q_step;  ///< [T][H]
  KvScales scales;
  KvLayer kv;
  const AttentionSequence* sequences;
  const PrefaceItem* preface_items;
  const ContextItem* context_items;
  float* states;       ///< [T][H][2][attention_state_floats(D)]: sink, anchors; maximum -inf = nothing seen
  float* out;          ///< [T][H·D]
  float* anchor_mass;  ///< [T][H] share of the anchors among anchors and context; 0 without anchors
};

/// p = round(2^30·exp2((logit − maximum)·scale)), 0 where the argument is NaN. Items: rows.
struct ProbabilitiesArgs {
  const float* logits;  ///< [rows][vocab]
  std::int32_t vocab;
  const float* scale;  ///< [rows] log2(e)/temperature
  std::int32_t* p;     ///< [rows][vocab]
};

/// tokens[row] = the token that follows the row (CANON.md, section 7), or exact::kNoToken. Items: rows.
struct ChooseArgs {
  const float* logits;  ///< [rows][vocab]
  std::int32_t vocab;
  const exact::TokenChoice* choices;  ///< [rows]
  const std::uint32_t* seen;          ///< [rows][exact::seen_words(vocab)], read where the penalty is not 1
  std::int32_t* tokens;               ///< [rows]
};

/// SHA-256 (FIPS 180-4) of messages of one length. Items: messages.
struct DigestArgs {
  const std::uint8_t* const* messages;
  std::int64_t bytes;     ///< of each
  std::uint8_t* digests;  ///< [messages][32]
};

}  // namespace fieldprint::backend
