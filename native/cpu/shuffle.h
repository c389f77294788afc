// __builtin_shufflevector(a, b, lanes...) for GCC 11, which lacks it: the lanes are picked one by one, and the compiler
// turns that into the same shuffle instruction. Everything else has the builtin.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12

namespace ansatz {
namespace {

template <class T> struct Bare { typedef T type; };
template <class T> struct Bare<T&> { typedef T type; };

template <int... Lane, class V> inline __attribute__((always_inline)) auto shuffle_lanes(V a, V b) {
  typedef typename Bare<decltype((a[0]))>::type Element;
  typedef Element Out __attribute__((vector_size(sizeof(Element) * sizeof...(Lane))));
  constexpr int n = sizeof(V) / sizeof(Element);
  return Out{(Lane < n ? a[Lane % n] : b[Lane % n])...};
}

}  // namespace
}  // namespace ansatz

#define __builtin_shufflevector(a, b, ...) ansatz::shuffle_lanes<__VA_ARGS__>(a, b)
#endif
