// Compares two pictures and prints what the server decides:
//
//   compare 127.0.0.1:50051 first.png second.png
//
// An API key is read from TWINSERVE_API_KEY. docs/clients.md says how to build it.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include <grpcpp/grpcpp.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "twinserve/v1/embedding_service.grpc.pb.h"

namespace v1 = twinserve::v1;

std::string file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path + " cannot be read");
  return {std::istreambuf_iterator<char>(stream), {}};
}

// What a program switches on: stable, where the text of an error is not.
std::string reason(const grpc::Status& failed) {
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  if (status.ParseFromString(failed.error_details()))
    for (const auto& detail : status.details())
      if (detail.UnpackTo(&info)) return info.reason();
  return "code " + std::to_string(failed.error_code());
}

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: compare TARGET FIRST SECOND\n";
    return 2;
  }
  // grpc::SslCredentials({}) speaks TLS, with the system's certificates.
  auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  auto embedding = v1::EmbeddingService::NewStub(channel);

  v1::CompareRequest request;
  auto* pair = request.add_pairs();
  pair->mutable_first()->set_image(file(arguments[2]));
  pair->mutable_second()->set_image(file(arguments[3]));

  grpc::ClientContext call;
  // A call without a deadline may wait for ever.
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  if (const char* key = std::getenv("TWINSERVE_API_KEY"))
    call.AddMetadata("authorization", std::string("Bearer ") + key);

  v1::CompareResponse reply;
  const grpc::Status status = embedding->Compare(&call, request, &reply);
  if (!status.ok()) {
    std::cerr << reason(status) << ": " << status.error_message() << "\n";
    return 1;
  }
  const auto& found = reply.results(0).comparison();
  std::cout << v1::Outcome_Name(found.decision().outcome())
            << " distance=" << found.score().distance()
            << " probability=" << found.score().probability() << "\n";
}
