#pragma once

namespace fieldprint::eval {

/// What imports are calibrated on: prose, dialogue, code, numbers and other scripts, as agents meet them. A
/// change of one byte changes the digest of every model imported after it.
inline constexpr char kCalibrationText[] =
    "The harbour office opened at seven, and by half past the queue of skippers reached the fish market. "
    "Each of them "
    "wanted the same thing: a berth for the week of the regatta, and each had a reason why the rules, which "
    "gave the "
    "berths to the boats that had wintered in the harbour, should not apply to him. Mrs. Lindqvist listened "
    "to all of "
    "them, wrote down the length of every keel, and promised nothing. \"Come back on Thursday,\" she said. "
    "\"If the dredger "
    "is done with the eastern basin by then, there will be room for nine more.\"\n\n"
    "User: My invoice for March lists 14 hours at 85.50 EUR, but the total says 1,282.50. What is right?\n"
    "Assistant: 14 hours at 85.50 EUR make 1,197.00 EUR. The total on your invoice is what 15 hours would "
    "cost, so one "
    "hour too many was charged. I have opened a ticket with the billing team; you will hear from them within "
    "two working "
    "days.\n\n"
    "def merge(intervals):\n"
    "    result = []\n"
    "    for start, end in sorted(intervals):\n"
    "        if result and start <= result[-1][1]:\n"
    "            result[-1] = (result[-1][0], max(end, result[-1][1]))\n"
    "        else:\n"
    "            result.append((start, end))\n"
    "    return result\n\n"
    "{\"tool\": \"search_orders\", \"arguments\": {\"customer\": 20418, \"since\": \"2024-11-05\", "
    "\"status\": [\"open\", "
    "\"late\"]}}\n\n"
    "A suspension bridge carries its deck on cables that hang between two towers. The cables pull the towers "
    "inward and "
    "down; the anchorages at both ends hold the cables back. Because a cable can only be pulled, its shape "
    "follows the "
    "load: under an even deck it is a parabola. Wind matters more than weight. In 1940 a bridge in "
    "Washington twisted "
    "itself apart in a steady wind of about sixty kilometres an hour, and since then the section of every "
    "long deck is "
    "tested in a tunnel before it is built.\n\n"
    "Der Zug nach Basel fährt heute von Gleis 12 ab. La réunion est reportée à mardi prochain. "
    "会议改到下周二。"
    " Встреча перенесена на вторник.\n\n"
    "Three friends shared a flat above a bakery. The oldest, who taught chemistry, rose first and brewed the "
    "coffee; the "
    "second drove a night bus and came home as the first left; the youngest wrote letters for people who "
    "could not write "
    "their own, and kept no hours at all. They met on Sundays, when the bakery was closed and the stairs did "
    "not smell "
    "of bread, and argued about money, which none of them had.\n";

}  // namespace fieldprint::eval
