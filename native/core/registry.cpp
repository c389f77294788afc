#include "registry.h"

#include <atomic>
#include <cstdlib>
#include <map>

#include "isa.h"

namespace ansatz {
namespace {

constexpr Level all_levels[] = {PORTABLE, AVX2, AVX512};

struct Registry {
  std::vector<std::string> names;
  std::map<std::string, int> ids;
  std::vector<KernelFn> functions[3];          // by level
  std::atomic<Level> level{PORTABLE};          // may be read from any thread

  Registry() {
    std::map<std::string, bool> sorted;
    for (int k = 0; k < all_tables_count; k++)
      for (int e = 0; e < all_tables[k].table->count; e++) sorted[all_tables[k].table->entries[e].name] = true;
    for (auto& entry : sorted) {
      ids[entry.first] = static_cast<int>(names.size());
      names.push_back(entry.first);
    }
    Level wanted = best_level();
    if (const char* env = std::getenv("ANSATZ_ISA"))
      for (Level l : all_levels)
        if (std::string(env) == level_name(l) && level_supported(l)) wanted = l;
    while (wanted != PORTABLE && !compiled(wanted)) wanted = static_cast<Level>(wanted - 1);
    for (Level l : all_levels) resolve(l);
    level = wanted;
  }

  static bool compiled(Level l) {
    for (int k = 0; k < all_tables_count; k++)
      if (std::string(all_tables[k].level) == level_name(l)) return true;
    return false;
  }

  void resolve(Level wanted) {
    std::vector<KernelFn>& chosen = functions[wanted];
    chosen.assign(names.size(), nullptr);
    for (Level l : all_levels) {   // ascending: a higher level overrides a lower one
      if (l > wanted) break;
      for (int k = 0; k < all_tables_count; k++) {
        if (std::string(all_tables[k].level) != level_name(l)) continue;
        for (int e = 0; e < all_tables[k].table->count; e++) {
          const KernelEntry& entry = all_tables[k].table->entries[e];
          chosen[ids[entry.name]] = entry.fn;
        }
      }
    }
  }
};

Registry& registry() {
  static Registry* const r = new Registry;   // never destroyed: other threads may still use it while the process exits
  return *r;
}

}  // namespace

const std::vector<std::string>& kernel_names() { return registry().names; }

KernelFn kernel_at(int id) {
  const Registry& r = registry();
  const std::vector<KernelFn>& functions = r.functions[r.level.load(std::memory_order_relaxed)];
  return id >= 0 && id < static_cast<int>(functions.size()) ? functions[id] : nullptr;
}

bool set_level(const std::string& level) {
  for (Level l : all_levels)
    if (level == level_name(l) && level_supported(l) && Registry::compiled(l)) {
      registry().level = l;
      return true;
    }
  return false;
}

std::string current_level() { return level_name(registry().level); }

std::vector<std::string> available_levels() {
  std::vector<std::string> out;
  for (Level l : all_levels)
    if (level_supported(l) && Registry::compiled(l)) out.push_back(level_name(l));
  return out;
}

}  // namespace ansatz
