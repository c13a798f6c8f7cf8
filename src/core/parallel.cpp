// One pool for the process. A worker spins for a short while after its last job, because waking a
// sleeping thread costs about 60 us, a tenth of an attention call of 256 tokens; then it sleeps.
#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "core/check.h"
#include "flashmha/device.h"

namespace flashmha {
namespace {

thread_local bool inside_task = false;

// One parallel_for call.
struct Job {
  FunctionRef<void(std::int64_t, int)> body;
  std::int64_t count;
  int max_workers;
  std::atomic<std::int64_t> next_task{0};
  std::atomic<int> next_worker{1};  // worker 0 is the caller
  std::atomic<bool> failed{false};
  std::exception_ptr error{};  // written by the task that sets `failed`

  void work(int worker) {
    inside_task = true;
    for (std::int64_t task = next_task++; task < count && !failed; task = next_task++) {
      try {
        body(task, worker);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    inside_task = false;
  }
};

class Pool {
 public:
  explicit Pool(int num_helpers) {
    for (int i = 0; i < num_helpers; ++i) {
      threads_.emplace_back([this] { helper_loop(); });
    }
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_)
      thread.join();
  }

  int num_helpers() const { return static_cast<int>(threads_.size()); }

  void run(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      generation_.fetch_add(1);
    }
    if (num_asleep_.load() > 0) wake_.notify_all();
    job.work(0);
    {
      const std::lock_guard lock(mutex_);
      job_ = nullptr;  // from here on no helper joins; those that did are counted in num_busy_
    }
    spin_until([this] { return num_busy_.load() == 0; });
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return num_busy_.load() == 0; });
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kSpinTime{200};

  void helper_loop() {
    std::uint64_t seen = 0;
    while (true) {
      seen = wait_for_work(seen);
      Job* job = nullptr;
      int worker = 0;
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
        job = job_;
        if (job == nullptr) continue;
        worker = job->next_worker++;
        if (worker >= job->max_workers) continue;
        ++num_busy_;
      }
      job->work(worker);
      const std::lock_guard lock(mutex_);
      if (--num_busy_ == 0) done_.notify_one();
    }
  }

  // Looks at the condition for a while; the caller sleeps afterwards if it is still false.
  template <class Condition>
  static void spin_until(Condition condition) {
    const Clock::time_point deadline = Clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 64; ++i) {
        if (condition()) return;
      }
      std::this_thread::yield();
    } while (Clock::now() < deadline);
  }

  // Returns the generation that differs from the one last seen.
  std::uint64_t wait_for_work(std::uint64_t seen) {
    spin_until([&] { return generation_.load() != seen; });
    std::unique_lock lock(mutex_);
    if (generation_.load() != seen) return generation_.load();
    ++num_asleep_;
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    --num_asleep_;
    return generation_.load();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  std::atomic<int> num_busy_{0};
  bool stopping_ = false;
  std::atomic<int> num_asleep_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::vector<std::thread> threads_;
};

int default_num_threads() {
  if (const char* text = std::getenv("FLASHMHA_NUM_THREADS")) {
    const std::string_view value = text;
    int count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    check(error == std::errc{} && end == value.data() + value.size() && count >= 1,
          "[num_threads] FLASHMHA_NUM_THREADS must be a number from 1 on; got '{}'", value);
    return count;
  }
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Concurrent callers take turns with the pool; whoever finds it busy runs its tasks alone.
struct Executor {
  std::mutex pool_mutex;
  std::unique_ptr<Pool> pool;
  std::atomic<int> num_threads{0};  // 0: not decided yet
};

Executor& executor() {
  // Never destroyed: its threads would have to be joined during static destruction, which deadlocks
  // when the process ends from one of them.
  static auto* instance = new Executor;
  return *instance;
}

}  // namespace

int num_threads() {
  int count = executor().num_threads.load();
  if (count == 0) {
    count = default_num_threads();
    executor().num_threads.store(count);
  }
  return count;
}

void set_num_threads(int count) {
  check(count >= 0, "[set_num_threads] count ({}) must be 0 (the default) or more", count);
  executor().num_threads.store(count);
}

void parallel_for(std::int64_t count, int max_workers,
                  FunctionRef<void(std::int64_t task, int worker)> body) {
  const auto workers =
      static_cast<int>(std::min<std::int64_t>({count, max_workers, num_threads()}));
  Job job{.body = body, .count = count, .max_workers = workers};
  std::unique_lock lock(executor().pool_mutex, std::defer_lock);
  if (workers <= 1 || inside_task || !lock.try_lock()) {
    for (std::int64_t task = 0; task < count; ++task)
      body(task, 0);
    return;
  }
  std::unique_ptr<Pool>& pool = executor().pool;
  if (!pool || pool->num_helpers() < num_threads() - 1) {
    pool.reset();
    pool = std::make_unique<Pool>(num_threads() - 1);
  }
  pool->run(job);
  lock.unlock();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace flashmha
