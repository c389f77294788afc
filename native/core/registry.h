// Kernel ids: one a name, in sorted order; each resolves to the best compiled version at or below the chosen level.
#pragma once
#include <string>
#include <vector>

#include "kernel.h"

namespace ansatz {

struct LeveledTable { const char* level; const KernelTable* table; };
extern const LeveledTable all_tables[];     // written by scripts/build-native.mjs
extern const int all_tables_count;

const std::vector<std::string>& kernel_names();
KernelFn kernel_at(int id);                 // nullptr when the id is unknown
bool set_level(const std::string& level);   // false when this CPU or this build cannot run it
std::string current_level();
std::vector<std::string> available_levels();

}  // namespace ansatz
