#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bounds.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "server/http_server.h"
#include "server/listen_address.h"
#include "server/log_service.h"

namespace fieldprint::cli {
namespace {

constexpr char kDefaultListen[] = "127.0.0.1:8470";

struct ServeOptions {
  store::DataFolder place;
  std::string listen = kDefaultListen;
  bool json = false;
  bool verbose = false;
};

std::atomic<server::HttpServer*> signalled{nullptr};
std::atomic<bool> ended{false};

/// How long a server that was told to end may wait for what it waits for: answers under way, which may wait
/// for their turn to read. A database that has stopped can hold a thread for ever.
constexpr std::chrono::milliseconds kEndTime =
    bounds::kMaxHttpStopTime + bounds::kMaxLedgerWait + std::chrono::seconds(1);

/// While it lives SIGINT and SIGTERM end the server, and not the process; a second one, or kEndTime after the
/// first, ends the process too: a reader leaves nothing behind. By a handler, because libraries have begun
/// threads already that would take a signal which others block.
class EndBySignal {
 public:
  explicit EndBySignal(server::HttpServer& server) {
    signalled = &server;
    struct sigaction action {};
    action.sa_handler = [](int signal) {
      const int error = errno;
      if (signal == SIGALRM || ended.exchange(true)) ::_exit(kEnvironmentFailed);
      ::alarm(std::chrono::ceil<std::chrono::seconds>(kEndTime).count());
      signalled.load()->stop();
      errno = error;
    };
    action.sa_flags = SA_RESTART;
    for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  EndBySignal(const EndBySignal&) = delete;
  EndBySignal& operator=(const EndBySignal&) = delete;
  ~EndBySignal() {
    ::alarm(0);
    for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGALRM};
  struct sigaction before_[std::size(kSignals)]{};
};

/// What a client sent as it is shown: it may have put anything there.
std::string shown(std::string_view sent) {
  if (sent.empty()) return "-";
  std::string text;
  for (const char c : sent) {
    const bool plain = c > ' ' && c < '\x7f' && c != '\\';
    text += plain ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return text;
}

/// Where stderr takes nothing, the server goes on without.
void show_access(const server::HttpAccess& access) {
  const std::string line = fmt::format("{} {} {} {} {}\n", shown(access.client), shown(access.method),
                                       shown(access.target), access.status, access.body_bytes);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void announce(const server::ListenAddress& address, std::uint64_t size, bool json) {
  const std::string url = fmt::format("http://{}", server::to_string(address));
  if (json) {
    print_line({{"url", url}, {"size", size}});
  } else {
    fmt::print("serving {} records at {}\n", size, url);
  }
  std::fflush(stdout);
}

int serve(const ServeOptions& options) {
  const auto address = server::parse_listen_address(options.listen);
  if (!address) {
    return report(caller_error(fmt::format("--listen takes HOST:PORT, such as {} or [::1]:8470, not '{}'",
                                           kDefaultListen, options.listen)));
  }
  auto store = open_place(options.place, store::Access::kFollow);
  if (!store) return report(store.error());
  server::LogService log(std::move(*store), remark);
  auto size = log.size();
  if (!size) return report(size.error());
  auto listening = server::listen_on(*address);
  if (!listening) return report(listening.error());
  if (!listening->is_loopback) {
    fmt::print(
        stderr,
        "fieldprint: warning: {} can be reached from other machines, and there is neither encryption nor "
        "a login; put a proxy that has them in front of it, or listen on 127.0.0.1\n",
        server::to_string(listening->address));
  }
  server::HttpServer server(
      listening->socket, [&log](const server::HttpRequest& request) { return log.answer(request); },
      options.verbose ? show_access : server::HttpServer::Observer());
  const EndBySignal end(server);
  announce(listening->address, *size, options.json);
  server.run();
  return kDone;
}

}  // namespace

void add_ledger_serve_command(CLI::App& ledger, Action& action) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = ledger.add_subcommand(
      "serve", "serve the log over HTTP to be read (c2sp.org/tlog-tiles), while others append to it");
  add_place_options(*command, options->place);
  command->add_option("--listen", options->listen, "HOST:PORT to listen on; port 0 takes a free one");
  command->add_flag("--verbose", options->verbose, "a line on stderr for each request");
  command->add_flag("--json", options->json, "say as one JSON object on stdout where it listens");
  command->callback([&action, options] { action = [options] { return serve(*options); }; });
}

}  // namespace fieldprint::cli
