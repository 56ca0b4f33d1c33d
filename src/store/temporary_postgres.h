#pragma once

#include <fcntl.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/temporary_folder.h"

namespace fieldprint::store {

/// A private PostgreSQL server of Debian's package, on a Unix socket in a temporary folder, that ends with
/// the object or its process. Run by root it serves as the user postgres, because the server refuses root.
class TemporaryPostgres {
 public:
  /// Nothing where the package is not installed; then `why` says so. One that does not start fails the tests.
  static std::unique_ptr<TemporaryPostgres> start(std::string& why) {
    const std::string programs = find_programs();
    if (programs.empty()) {
      why = "no PostgreSQL server is installed; run tools/setup --tests";
      return nullptr;
    }
    std::unique_ptr<TemporaryPostgres> server(new TemporaryPostgres(programs));
    CHECK(server->initialise() && server->run(), "the private PostgreSQL server does not start; see its log");
    return server;
  }

  ~TemporaryPostgres() { stop(SIGINT); }
  TemporaryPostgres(const TemporaryPostgres&) = delete;
  TemporaryPostgres& operator=(const TemporaryPostgres&) = delete;

  /// Of an empty database of this name.
  std::string url(const std::string& database) const {
    PGconn* connection = PQconnectdb(url_of("postgres").c_str());
    PQclear(PQexec(connection, ("CREATE DATABASE " + database).c_str()));
    PQfinish(connection);
    return url_of(database);
  }
  /// Kills the server without a word to anybody, and those of its processes that serve connections: these
  /// would go on for as long as they are kept busy.
  void kill() {
    if (server_ <= 0) return;
    ::kill(server_, SIGSTOP);  // so that it starts no more
    const std::vector<pid_t> serving = children_of(server_);
    stop(SIGKILL);
    for (const pid_t process : serving) ::kill(process, SIGKILL);
  }
  /// A killed server's processes hold its shared memory until they are gone; a start before that fails. On a
  /// busy disk it takes long to flush every file of a server that was killed.
  bool run() {
    for (int attempt = 0; attempt < 3000; ++attempt) {
      if (server_ <= 0) {
        server_ = spawn({programs_ + "/postgres", "-D", data(), "-k", folder_.path(), "-h", "", "-c",
                         "max_connections=50"});
      }
      if (PQping(url_of("postgres").c_str()) == PQPING_OK) return true;
      if (::waitpid(server_, nullptr, WNOHANG) == server_) server_ = -1;
      ::usleep(50'000);
    }
    return false;
  }

 private:
  explicit TemporaryPostgres(std::string programs) : programs_(std::move(programs)) {
    if (::geteuid() == 0) user_ = ::getpwnam("postgres");
    if (user_ != nullptr) CHECK(::chown(folder_.path().c_str(), user_->pw_uid, user_->pw_gid) == 0);
  }

  static std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> children;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const auto process = static_cast<pid_t>(std::strtol(entry.path().filename().c_str(), nullptr, 10));
      std::ifstream file(entry.path() / "stat");  // proc(5): pid (name) state parent …
      std::string line;
      if (process <= 0 || !std::getline(file, line)) continue;
      char state = 0;
      pid_t its_parent = 0;
      std::istringstream rest(line.substr(line.rfind(')') + 1));
      if (rest >> state >> its_parent && its_parent == parent) children.push_back(process);
    }
    return children;
  }

  static std::string find_programs() {
    std::vector<std::string> found;
    std::error_code none;
    for (const auto& version : std::filesystem::directory_iterator("/usr/lib/postgresql", none)) {
      const auto bin = version.path() / "bin";
      if (std::filesystem::exists(bin / "postgres")) found.push_back(bin.string());
    }
    return found.empty() ? std::string() : *std::max_element(found.begin(), found.end());
  }

  std::string data() const { return folder_.file("data"); }
  std::string url_of(const std::string& database) const {
    return "postgresql:///" + database + "?host=" + folder_.path() + "&user=postgres";
  }

  bool initialise() const {
    const pid_t child = spawn({programs_ + "/initdb", "-D", data(), "-U", "postgres", "-A", "trust", "-N",
                               "-E", "UTF8", "--locale=C"});
    int status = 1;
    return ::waitpid(child, &status, 0) == child && status == 0;
  }

  pid_t spawn(std::vector<std::string> arguments) const {
    std::vector<char*> raw;
    for (std::string& argument : arguments) raw.push_back(argument.data());
    raw.push_back(nullptr);
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child != 0) return child;
    const int log = ::open(folder_.file("log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    ::dup2(log, 1);
    ::dup2(log, 2);
    if (::chdir(folder_.path().c_str()) != 0) ::_exit(126);
    if (user_ != nullptr &&
        (::setgroups(0, nullptr) != 0 || ::setgid(user_->pw_gid) != 0 || ::setuid(user_->pw_uid) != 0)) {
      ::_exit(126);
    }
    // After the change of user, which forgets it.
    if (::prctl(PR_SET_PDEATHSIG, SIGINT) != 0) ::_exit(126);
    ::execv(raw[0], raw.data());
    ::_exit(127);
  }

  void stop(int signal) {
    if (server_ <= 0) return;
    ::kill(server_, signal);
    ::waitpid(server_, nullptr, 0);
    server_ = -1;
  }

  std::string programs_;
  TemporaryFolder folder_ = TemporaryFolder::make().value();
  const passwd* user_ = nullptr;
  pid_t server_ = -1;
};

}  // namespace fieldprint::store
