// Paths through an automaton, place by place: the inner loops of canvaslm/constrain. Plain C++, one thread.
// Scores are nats, -inf where nothing leads; of equal ways the first one wins, as in the numpy twins.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

static constexpr int kPutIn = -3;  // less the token: how `by` says that one was put in

// Takes each of a place's `count` tokens from every state that it leads out of. `next` [symbols, dead + 1] is
// the automaton by symbols, so that states one after the other are near each other; `runs[begin[i]]` to
// `runs[begin[i + 1]]` are the symbols of token i. `score` is what was, `best` [dead + 1] what is so far,
// with `before` and `by`: the state and the token that led there.
API void canvas_keep(const uint16_t* next, int dead, int count, const int64_t* tokens, const double* logprobs,
                     const int64_t* begin, const int16_t* runs, const double* score, double* best,
                     int32_t* before, int32_t* by) {
  std::vector<int> live;
  for (int state = 0; state < dead; state++)
    if (score[state] > -INFINITY) live.push_back(state);
  const size_t column = (size_t)dead + 1;
  for (int i = 0; i < count; i++) {
    if (begin[i] == begin[i + 1]) continue;
    const uint16_t* first = next + column * runs[begin[i]];
    for (int source : live) {
      int state = first[source];
      if (state == dead) continue;
      const double value = score[source] + logprobs[i];
      for (int64_t at = begin[i] + 1; at < begin[i + 1] && state != dead; at++)
        state = next[column * runs[at] + state];
      if (state == dead || !(value > best[state])) continue;
      best[state] = value, before[state] = source, by[state] = (int32_t)tokens[i];
    }
  }
}

// Takes one of `count` edges at this place, whatever it names, for `logprob`.
API void canvas_take(int count, const int64_t* source, const int64_t* target, const int64_t* token,
                     double logprob, const double* score, double* best, int32_t* before, int32_t* by) {
  for (int i = 0; i < count; i++) {
    const double value = score[source[i]] + logprob;
    if (!(value > best[target[i]])) continue;
    best[target[i]] = value, before[target[i]] = (int32_t)source[i], by[target[i]] = (int32_t)token[i];
  }
}

// Puts edges in, each for its price, for as long as that makes a state cheaper by more than `least`.
// `changed` [dead]: the states to begin with. `begin` [dead + 2]: where each state's edges begin.
API void canvas_insert(int dead, const int64_t* begin, const int64_t* target, const int64_t* token,
                       const double* price, double least, double* score, int32_t* before, int32_t* by,
                       const uint8_t* changed) {
  struct Offer {
    int source, target;
    int32_t by;
    double value;
  };
  std::vector<int> from;
  std::vector<Offer> offers;
  for (int state = 0; state < dead; state++)
    if (changed[state]) from.push_back(state);
  while (!from.empty()) {
    offers.clear();
    for (int source : from)
      for (int64_t i = begin[source]; i < begin[source + 1]; i++) {
        const double value = score[source] - price[i];
        if (value > score[target[i]] + least)
          offers.push_back({source, (int)target[i], (int32_t)(kPutIn - token[i]), value});
      }
    from.clear();
    for (const Offer& offer : offers)  // all of a round see the same scores
      if (offer.value > score[offer.target]) {
        score[offer.target] = offer.value;
        before[offer.target] = offer.source, by[offer.target] = offer.by;
        from.push_back(offer.target);
      }
    std::sort(from.begin(), from.end());
    from.erase(std::unique(from.begin(), from.end()), from.end());
  }
}
