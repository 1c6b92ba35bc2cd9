// Compares two pictures and prints what the server decides:
//
//	go run compare.go [-target 127.0.0.1:50051] first.png second.png
//
// docs/clients.md says how the package twinservev1 is generated.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	twinservev1 "twinserve.example/client/twinserve/v1"
)

func main() {
	target := flag.String("target", "127.0.0.1:50051", "address of the server")
	tls := flag.Bool("tls", false, "speak TLS, with the system's certificates")
	key := flag.String("key", os.Getenv("TWINSERVE_API_KEY"), "API key")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("give two pictures: compare.go first.png second.png")
	}

	security := grpc.WithInsecure()
	if *tls {
		security = grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(nil, ""))
	}
	connection, err := grpc.Dial(*target, security)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	// A call without a deadline may wait for ever.
	call, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if *key != "" {
		call = metadata.AppendToOutgoingContext(call, "authorization", "Bearer "+*key)
	}
	reply, err := twinservev1.NewEmbeddingServiceClient(connection).Compare(call,
		&twinservev1.CompareRequest{Pairs: []*twinservev1.Pair{
			{First: picture(flag.Arg(0)), Second: picture(flag.Arg(1))},
		}})
	if err != nil {
		log.Fatalf("%s: %v", reason(err), err)
	}
	found := reply.Results[0].GetComparison()
	fmt.Printf("%v distance=%.6f probability=%.6f\n",
		found.Decision.Outcome, found.Score.Distance, found.Score.GetProbability())
}

func picture(path string) *twinservev1.Input {
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return &twinservev1.Input{Kind: &twinservev1.Input_Image{Image: data}}
}

// reason is what a program switches on: stable, where the text of an error is not.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return status.Code(err).String()
}
