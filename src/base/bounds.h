#pragma once

#include <chrono>
#include <cstdint>

/// Every limit of fieldprint, in one place. A limit that input can exceed is answered with an error that
/// names it; a limit that only our own code can exceed is a CHECK.
namespace fieldprint::bounds {

// Models.
inline constexpr std::int64_t kMaxLayers = 512;
inline constexpr std::int64_t kMaxHeads = 256;  ///< query heads, and so KV heads
inline constexpr std::int64_t kMaxHeadDim = 256;
inline constexpr std::int64_t kMaxGroup = 16;   ///< query heads that share one KV head
inline constexpr std::int64_t kMaxDim = 65536;  ///< columns of a linear: 255·128·65536 < 2^31
inline constexpr std::int64_t kMaxVocab = 1 << 20;
inline constexpr std::int64_t kMaxContext = 1 << 20;  ///< tokens of one sequence
// Scales of keys and values and their inverses: within these no product of attention overflows.
inline constexpr float kMinKvScale = 0x1p-48F;
inline constexpr float kMaxKvScale = 0x1p48F;
inline constexpr std::int64_t kMaxMerges = 1 << 22;   ///< merges of a BPE vocabulary
inline constexpr std::int64_t kMaxTokenBytes = 1024;  ///< text of one token
inline constexpr std::int64_t kMaxTensors = 1 << 16;
inline constexpr std::int64_t kMaxMetadataKeys = 1 << 16;
inline constexpr std::int64_t kMaxStringBytes = 1 << 24;
inline constexpr std::int64_t kMaxArrayElements = 1 << 24;

// Requests.
inline constexpr std::int64_t kMaxAnchorTokens = 1024;            ///< default for the sum over an anchor set
inline constexpr std::int64_t kMaxAnchors = 64;                   ///< anchors bound by one request
inline constexpr std::int64_t kMaxAnchorBytes = 60'000;           ///< of text
inline constexpr std::int64_t kMaxAnchorCanonicalBytes = 64'000;  ///< so that its proposal fits into a leaf
inline constexpr std::int64_t kMaxAnchorNameBytes = 256;
inline constexpr std::int64_t kMaxAnchorListed = 64;  ///< tenants, models or superseded anchors of one anchor
inline constexpr std::int64_t kMaxTenantBytes = 256;
inline constexpr std::int64_t kMaxReasonBytes = 1024;  ///< of a revocation
inline constexpr std::int64_t kMaxPolicyKeys = 64;     ///< keys of one policy
inline constexpr std::int64_t kMaxPolicyFileBytes = 1 << 16;
inline constexpr std::int64_t kMaxRefusedRecords = 1000;  ///< whose reasons a registry keeps
/// So far a record's time may be ahead of the clock of the machine that enters it.
inline constexpr std::int64_t kMaxRecordLeadSeconds = 300;
inline constexpr std::int64_t kMinAnchorPrefixDigits = 8;  ///< of an id that is not written out
inline constexpr std::int64_t kMaxBatch = 256;             ///< sequences in one step
inline constexpr std::int64_t kMaxStepTokens = 8192;       ///< tokens in one step
inline constexpr std::int64_t kMaxStopStrings = 16;
inline constexpr std::int64_t kMaxLogprobs = 20;
inline constexpr std::int64_t kMaxTopK = 1 << 20;
// Within these, log2(e)/temperature is finite and a penalty takes no logit of a sound model to infinity or 0.
inline constexpr float kMinTemperature = 1e-3F;  ///< of those that are not 0
inline constexpr float kMaxTemperature = 100;
inline constexpr float kMinRepetitionPenalty = 1e-2F;
inline constexpr float kMaxRepetitionPenalty = 100;

/// Of partial states of one layer's attention on a GPU, which long contexts of prefills would need more of:
/// their parts are longer then. A state for each token of the step there is room for in any case.
inline constexpr std::int64_t kMaxAttentionStateBytes = std::int64_t{512} << 20;

// Ledger.
inline constexpr std::int64_t kMaxNoteBytes = 1 << 20;  ///< a signed note with all its signatures
inline constexpr std::int64_t kMaxNoteSignatures = 100;
inline constexpr std::int64_t kMaxKeyNameBytes = 256;
inline constexpr std::int64_t kMaxKeyFileBytes = 4096;
inline constexpr std::int64_t kMaxProofHashes = 64;  ///< an RFC 9162 proof in a tree below 2^64 leaves
inline constexpr std::int64_t kMaxLeafBytes =
    65535;  ///< what an entry bundle of c2sp.org/tlog-tiles can hold
inline constexpr std::int64_t kMaxGroupLeaves = 4096;  ///< leaves that one transaction of a ledger takes up
inline constexpr std::int64_t kMaxGroupBytes = 16LL << 20;
inline constexpr std::int64_t kMaxProofFileBytes = 1 << 20;
inline constexpr std::int64_t kReplayLeaves = 4096;  ///< read at once by who follows a ledger
/// After which a ledger on a server is read again although nothing was heard of it.
inline constexpr std::chrono::milliseconds kMaxLedgerSilence{1000};

// Serving over HTTP. What is slower or larger is cut off, so that nobody holds a thread for long.
inline constexpr int kHttpThreads = 8;  ///< connections that are answered at once
inline constexpr int kMaxHttpWaiting =
    64;  ///< connections taken up beyond those; more wait in the system's queue
inline constexpr std::int64_t kMaxHttpHeadBytes = 16 << 10;  ///< request line and header fields
inline constexpr int kMaxHttpConnectionRequests = 1000;
inline constexpr std::chrono::milliseconds kMaxHttpHeadTime{
    5000};  ///< from a request's first byte to its last
inline constexpr std::chrono::milliseconds kMaxHttpIdleTime{5000};     ///< between requests of one connection
inline constexpr std::chrono::milliseconds kMaxHttpAnswerTime{30000};  ///< for a client to take an answer
inline constexpr std::chrono::milliseconds kMaxHttpStopTime{2000};     ///< for answers under way when it ends
inline constexpr std::chrono::milliseconds kMaxLedgerWait{3000};       ///< for a turn to read the ledger

// KV cache.
inline constexpr std::int64_t kMaxKvBlocks = 1 << 24;
inline constexpr std::int64_t kMaxKvSwapBytes = 1LL << 46;

// Receipts.
inline constexpr std::int64_t kMaxReceiptId = 128;  ///< bytes of a receipt's name
inline constexpr std::int64_t kMaxCanonVersionBytes = 64;
inline constexpr std::int64_t kMaxStopStringBytes = 4096;
inline constexpr std::int64_t kMaxInputs = 1024;  ///< tool results and memories that entered a context
inline constexpr std::int64_t kMaxVerdictCommits = 1024;  ///< that one verdict is about
inline constexpr std::int64_t kMaxVerdictReasonBytes = 4096;
inline constexpr std::int64_t kMaxBackendNameBytes = 64;

// Validation.
inline constexpr std::int64_t kMaxReexecutions = 4;  ///< sampled commits that wait to be computed again
/// Default for how long a ledger may fail before the answers that it must record stop: long enough for a
/// database server to be restarted or replaced, and for somebody to make room on a disk.
inline constexpr std::chrono::seconds kLedgerPatience{120};
inline constexpr std::chrono::seconds kMaxLedgerPatience{86400};
/// A request with anchors waits so long for what the ledger has gained to be read.
inline constexpr std::chrono::milliseconds kMaxOpenWait{1000};

// Files.
inline constexpr std::int64_t kMaxReceiptBytes = 64LL << 20;
inline constexpr std::int64_t kMaxTextBytes = 1LL << 28;

}  // namespace fieldprint::bounds
