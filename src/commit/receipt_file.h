#pragma once

#include <string>
#include <string_view>

#include "commit/receipt.h"

namespace fieldprint::commit {

/// A receipt's id names its files: 1 to bounds::kMaxReceiptId letters, digits and "._-", no dot in front.
Status check_receipt_id(std::string_view id);

/// Writes `<id>.receipt` (CBOR) and `<id>.json` (the readable view) into a folder that exists, each
/// atomically, and gives the path of the former; after an error neither is there. A process that dies between
/// the two leaves the receipt without its view. Never replaces a receipt: one that is there is the caller's
/// error, and so is what check_replaceable() refuses at the view's place.
Result<std::string> write_receipt(const std::string& folder, std::string_view id, const Receipt& receipt);

/// Takes away what write_receipt wrote, by the path that it gave: the answer turned out not to hold.
Status remove_receipt(const std::string& path);

/// Whether the folder holds a receipt of this id. Without one, what write_receipt() would refuse at the
/// view's place is the caller's error.
Result<bool> has_receipt(const std::string& folder, std::string_view id);

/// Reads and decodes a receipt file. Errors name the file.
Result<Receipt> read_receipt(const std::string& path);

}  // namespace fieldprint::commit
