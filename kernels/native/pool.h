// Threads that wait, blocked, until there is work: no spinning, since a peer's machine always has something else to do.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

// Calls one function from several threads, the caller's included. One call at a time; a second caller works alone.
class Pool {
public:
    static Pool& instance() {
        static Pool* pool = [] {
            pthread_atfork(nullptr, nullptr, [] { instance_after_fork() = true; });
            return new Pool;
        }();
        if (instance_after_fork()) {  // the threads stayed in the parent; what they held cannot be taken back
            instance_after_fork() = false;
            pool = new Pool;
        }
        return *pool;
    }

    // Calls `work(i)` once for each i below `pieces`, with up to `threads` threads.
    void run(size_t threads, size_t pieces, const std::function<void(size_t)>& work) {
        std::unique_lock<std::mutex> turn(busy_, std::try_to_lock);
        if (threads <= 1 || pieces <= 1 || !turn.owns_lock()) {
            for (size_t i = 0; i < pieces; ++i) work(i);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            add_workers(threads - 1);
            work_ = &work;
            pieces_ = pieces;
            next_ = 0;
            wanted_ = std::min({threads - 1, pieces - 1, workers_});
            left_ = wanted_;
            ++round_;
        }
        begin_.notify_all();
        take();
        std::unique_lock<std::mutex> lock(mutex_);
        end_.wait(lock, [this] { return left_ == 0; });
    }

private:
    static bool& instance_after_fork() {
        static bool forked = false;
        return forked;
    }

    // Fewer than are wanted, if the machine gives no more.
    void add_workers(size_t count) {
        try {
            for (; workers_ < count; ++workers_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
        }
    }

    void serve() {
        size_t seen = 0;
        while (true) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                begin_.wait(lock, [&] { return round_ != seen && wanted_ > 0; });
                seen = round_;
                --wanted_;
            }
            take();
            std::lock_guard<std::mutex> lock(mutex_);
            if (--left_ == 0) end_.notify_one();
        }
    }

    void take() {
        for (size_t i = next_++; i < pieces_; i = next_++) (*work_)(i);
    }

    std::mutex busy_, mutex_;
    std::condition_variable begin_, end_;
    const std::function<void(size_t)>* work_ = nullptr;
    size_t workers_ = 0, pieces_ = 0, wanted_ = 0, left_ = 0, round_ = 0;
    std::atomic<size_t> next_{0};
};
